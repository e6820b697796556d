// What a call of the operators is about, on any device: the arguments, checked.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tensors.h"

namespace convgru {

// T time steps, N batch, K hidden channels, H x W pixels.
struct Problem {
  int64_t T, N, K, H, W;
  bool cudnn, relu, reverse;
  const int64_t* lengths;  // (N,) or nullptr

  int64_t pixels() const { return H * W; }
  int64_t rows() const { return N * H * W; }
  int64_t state_size() const { return N * H * W * K; }
  int64_t all_rows() const { return T * N * H * W; }
  int64_t gates_kept() const { return cudnn ? 4 : 3; }
  // The t of the i-th step in the order in which the recurrence visits them.
  int64_t time(int64_t i) const { return reverse ? T - 1 - i : i; }
};

// The tensor arguments of the operators; the weights' memory is dense, O outermost, biases and lengths are
// contiguous.
struct Arguments {
  Optional input;      // (T,N,C,H,W)
  Optional hx;         // (N,K,H,W)
  Optional weight_ih;  // (3K,C,kh,kw)
  Tensor weight_hh;    // (3K,K,kh,kw)
  Optional bias_ih;    // (3K,)
  Optional bias_hh;    // (3K,)
  Optional gate_bias;  // (T,N,3K,H,W) or (T,N,3K,1,1)
  Optional lengths;    // (N,)

  // The images whose memory format the output takes.
  const Tensor& images() const { return input.has_value() ? *input : hx.has_value() ? *hx : *gate_bias; }
};
// Those before lengths are differentiable: the index of each among the gradients.
enum Argument { kInput, kHx, kWeightIh, kWeightHh, kBiasIh, kBiasHh, kGateBias, kNumDifferentiable };
using Gradients = std::array<Tensor, kNumDifferentiable>;

// The arguments of both operators, made ready, and the problem that they describe. Throws if they do not fit
// together or are not on one device.
std::tuple<Arguments, Problem> prepare(
    const Optional& input, const Optional& hx, const Optional& weight_ih, const Tensor& weight_hh,
    const Optional& bias_ih, const Optional& bias_hh, const Optional& gate_bias, const Optional& lengths,
    const std::string& variant, bool reverse);

// The same for those that only conv_gru_backward has. gates may be (0,).
void check_backward(
    const Tensor& grad_output, const Tensor& output, const Tensor& gates, const Tensor& weight_hh,
    const std::vector<bool>& output_mask, const Problem& p);

// Calls f with a value of the storage type, a device's own where C++ has none.
template <class BFloat16, class Float16, class F>
auto dispatch(torch::headeronly::ScalarType type, const F& f) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Float16{});
    default:
      STD_TORCH_CHECK(false, "weight_hh: expected float32, float64, bfloat16 or float16");
  }
}

// Gradients where no step was taken: zeros of those that are wanted, (0,) of the others.
Gradients zero_gradients(const Arguments& arguments, const std::vector<bool>& wanted);

// What the schema calls (Tensor, ...) of seven.
using GradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
inline GradientTuple as_tuple(const Gradients& g) {
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
}

}  // namespace convgru
