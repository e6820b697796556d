#include "winograd_weights.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <mutex>

namespace convgru::cpu {
namespace {

constexpr size_t kMostBytes = size_t(256) << 20;

struct Key {
  const float* weights;
  const WinogradKernels* kernels;  // their scheme says which taps there are
  std::array<int64_t, 6> layout;   // out, in, strides
  bool transposed;
  bool operator==(const Key& other) const {
    return weights == other.weights && kernels == other.kernels && layout == other.layout &&
           transposed == other.transposed;
  }
};

struct Entry {
  Key key;
  std::vector<float> weights;  // a copy of the memory that the transformed weights were made from
  std::shared_ptr<const std::vector<float>> transformed;
  size_t bytes() const { return (weights.size() + transformed->size()) * sizeof(float); }
};

std::mutex mutex;
std::list<Entry>& entries() {                  // most recently used first
  static auto* list = new std::list<Entry>();  // never destroyed: threads may outlive static destructors
  return *list;
}

std::shared_ptr<const std::vector<float>> transform(
    const WinogradKernels& kernels, const float* weights, int64_t out, int64_t in,
    const int64_t (&strides)[4], bool transposed) {
  WinogradWeights source{weights, strides[0], strides[1], strides[2], strides[3]};
  if (transposed) {
    const int64_t last_tap =
        (kernels.scheme.kernel_h - 1) * strides[2] + (kernels.scheme.kernel_w - 1) * strides[3];
    source = {weights + last_tap, strides[1], strides[0], -strides[2], -strides[3]};
    std::swap(out, in);
  }
  auto result = std::make_shared<std::vector<float>>(kernels.weights_size(in, out));
  torch::stable::parallel_for(0, kernels.channel_blocks(out), 1, [&](int64_t begin, int64_t end) {
    kernels.transform_weights(begin, end, in, out, source, result->data());
  });
  return result;
}

}  // namespace

std::shared_ptr<const std::vector<float>> winograd_weights(
    const WinogradKernels& kernels, const float* weights, int64_t out, int64_t in,
    const int64_t (&strides)[4], bool transposed) {
  const Key key{weights, &kernels, {out, in, strides[0], strides[1], strides[2], strides[3]}, transposed};
  const size_t size = out * in * kernels.scheme.kernel_h * kernels.scheme.kernel_w;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    std::list<Entry>& list = entries();
    const auto entry = std::find_if(list.begin(), list.end(), [&](const Entry& e) { return e.key == key; });
    if (entry != list.end()) {
      if (memcmp(entry->weights.data(), weights, size * sizeof(float)) == 0) {
        list.splice(list.begin(), list, entry);
        return entry->transformed;
      }
      list.erase(entry);
    }
  }
  Entry entry{key, {weights, weights + size}, transform(kernels, weights, out, in, strides, transposed)};
  const auto transformed = entry.transformed;
  const std::lock_guard<std::mutex> lock(mutex);
  std::list<Entry>& list = entries();
  list.push_front(std::move(entry));
  size_t bytes = 0;
  for (auto it = list.begin(); it != list.end();) {
    bytes += it->bytes();
    it = bytes > kMostBytes ? list.erase(it) : std::next(it);
  }
  return transformed;
}

}  // namespace convgru::cpu
