// The test of the harness itself: kernels that are right pass for every seed, and each planted fault is
// found.
//   harness_test CASE SEED   -> exit status 0 if the kernel ran and its result is right, 1 and a line if not
#include <cmath>
#include <cstdio>
#include <map>

#include "cuda_on_host.h"
#define CONVGRU_CUDA_ON_HOST
#include "../../csrc/cuda/ptx.cuh"

using namespace convgru::cuda;
using cuda_on_host::launch;
using cuda_on_host::machine;
using cuda_on_host::Memory;
using cuda_on_host::spin_until;
using cuda_on_host::sync_grid;

namespace {

void check(bool right, const char* what) {
  if (!right) throw std::runtime_error(what);
}

float* floats(const Memory& memory) {
  return reinterpret_cast<float*>(memory.data());
}

// The sum over a block by halves, every thread's share through shared memory.
template <bool kBarrier>
__global__ void sum_kernel(const float* x, float* y) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const int t = threadIdx.x;
  shared[t] = x[blockIdx.x * blockDim.x + t];
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) shared[t] += shared[t + half];
    if (kBarrier) __syncthreads();
  }
  if (t == 0) y[blockIdx.x] = shared[0];
}

template <bool kBarrier>
void sum() {
  constexpr int kBlocks = 3, kThreads = 96 / 3 * 2;
  Memory x(kBlocks * kThreads * sizeof(float)), y(kBlocks * sizeof(float));
  for (int i = 0; i < kBlocks * kThreads; ++i) floats(x)[i] = i;
  launch(false, sum_kernel<kBarrier>, kBlocks, kThreads, kThreads * sizeof(float), floats(x), floats(y));
  for (int b = 0; b < kBlocks; ++b) {
    const float first = b * kThreads;
    check(floats(y)[b] == kThreads * first + kThreads * (kThreads - 1) / 2, "wrong sum");
  }
}

// Copies through shared memory, the elements of a thread read by another.
template <bool kWait>
__global__ void copy_kernel(const float* x, float* y, int count) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const int t = threadIdx.x, left = count - 4 * t;
  copy_async<16>(shared + 4 * t, x + (left > 0 ? 4 * t : 0), left >= 4 ? 16 : left > 0 ? 4 * left : 0);
  copy_async_commit();
  copy_async_commit();  // a group of nothing
  if (kWait) copy_async_wait<1>();
  __syncthreads();
  const int other = blockDim.x - 1 - t;
  for (int i = 0; i < 4; ++i) y[4 * other + i] = shared[4 * other + i];
  copy_async_wait<0>();
}

template <bool kWait>
void copy() {
  constexpr int kThreads = 32, kCount = 4 * kThreads - 6;
  Memory x(kCount * sizeof(float)), y(4 * kThreads * sizeof(float));
  for (int i = 0; i < kCount; ++i) floats(x)[i] = i + 1;
  launch(false, copy_kernel<kWait>, 1, kThreads, 16 * kThreads, floats(x), floats(y), kCount);
  for (int i = 0; i < 4 * kThreads; ++i) check(floats(y)[i] == (i < kCount ? i + 1 : 0), "wrong copy");
}

__global__ void pending_kernel(const float* x) {
  copy_async<16>(dynamic_shared(), x);
  copy_async_commit();
}

void pending() {
  Memory x(16);
  launch(false, pending_kernel, 1, 1, 16, floats(x));
}

__global__ void misaligned_kernel(const float* x) {
  copy_async<16>(dynamic_shared(), x + 1);
  copy_async_commit();
  copy_async_wait<0>();
}

void misaligned() {
  Memory x(32);
  launch(false, misaligned_kernel, 1, 1, 16, floats(x));
}

__global__ void read_kernel(const float* x, float* y, int offset) {
  y[threadIdx.x] = x[threadIdx.x + offset];
}

template <int kOffset>
void read() {
  Memory x(64 * sizeof(float)), y(64 * sizeof(float));
  for (int i = 0; i < 64; ++i) floats(x)[i] = i;
  launch(false, read_kernel, 1, 64, 0, floats(x), floats(y), kOffset);
  for (int i = 0; i < 64; ++i) check(floats(y)[i] == i, "wrong copy");
}

__global__ void shared_kernel(float* y, int offset) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  shared[threadIdx.x + offset] = threadIdx.x;
  y[threadIdx.x] = shared[threadIdx.x + offset];
}

template <int kOffset>
void shared() {
  Memory y(64 * sizeof(float));
  launch(false, shared_kernel, 1, 64, 64 * sizeof(float), floats(y), kOffset);
  for (int i = 0; i < 64; ++i) check(floats(y)[i] == i, "wrong copy");
}

template <int kStep>
__global__ void write_kernel(float* y) {
  if (threadIdx.x % kStep == 0) y[threadIdx.x] = 0;
}

template <int kStep>
void write() {
  Memory y(64 * sizeof(float));
  launch(false, write_kernel<kStep>, 1, 64, 0, floats(y));
  for (int i = 0; i < 64; ++i) check(!std::isnan(floats(y)[i]), "an output was not written");
}

// Every block adds what its neighbour had before the barrier.
template <int kBarriers>
__global__ void grid_kernel(float* x) {
  if (threadIdx.x == 0) x[blockIdx.x] = blockIdx.x;
  for (int i = 0; i < (blockIdx.x == 0 ? kBarriers : 1); ++i) sync_grid();
  if (threadIdx.x == 0) x[gridDim.x + blockIdx.x] = x[(blockIdx.x + 1) % gridDim.x];
}

template <int kBarriers, bool kCooperative>
void grid() {
  Memory x(8 * sizeof(float));
  launch(kCooperative, grid_kernel<kBarriers>, 4, 32, 0, floats(x));
  for (int b = 0; b < 4; ++b) check(floats(x)[4 + b] == (b + 1) % 4, "wrong neighbour");
}

__global__ void counter_kernel(unsigned* counter) {
  for (unsigned round = 1; round <= 3; ++round) sync_grid(counter, round, [] {});
}

template <int kStart>
void counter() {
  Memory start(sizeof(unsigned));
  memset(start.data(), kStart, start.size());
  launch(true, counter_kernel, 4, 32, 0, reinterpret_cast<unsigned*>(start.data()));
}

template <bool kSet>
__global__ void flag_kernel(int* flag, float* y) {
  if (blockIdx.x == 0) {
    if (kSet) *flag = 1;
  } else {
    spin_until([=] { return *flag == 1; });
    *y = 1;
  }
}

template <bool kSet>
void flag() {
  Memory f(sizeof(int)), y(sizeof(float));
  *reinterpret_cast<int*>(f.data()) = 0;
  launch(true, flag_kernel<kSet>, 2, 1, 0, reinterpret_cast<int*>(f.data()), floats(y));
  check(*floats(y) == 1, "not written");
}

template <bool kSame>
__global__ void place_kernel() {
  if (kSame || threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

template <bool kSame>
void place() {
  launch(false, place_kernel<kSame>, 1, 64, 0);
}

// One warp: a 16xk times kx8, fragments by ldmatrix from shared memory; b as columns or, transposed, as rows.
template <Half kType, bool kTransposed>
__global__ void product_kernel(const uint16_t* a, const uint16_t* b, float* c) {
  uint16_t* shared = reinterpret_cast<uint16_t*>(dynamic_shared());
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * 16; i += 32) shared[i] = a[i];
  uint16_t* shared_b = shared + 16 * 16;
  for (int i = lane; i < 16 * 16; i += 32) shared_b[i] = b[i];
  __syncwarp();
  uint32_t left[4], right[4];
  load_matrices<false>(left, shared + lane % 16 * 16 + lane / 16 * 8);
  // b is 16x16: its two halves of 8 columns are two products.
  if constexpr (kTransposed)  // stored [k][n]
    load_matrices<true>(right, shared_b + lane % 16 * 16 + lane / 16 * 8);
  else  // stored [n][k]
    load_matrices<false>(right, shared_b + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
  for (int half = 0; half < 2; ++half) {
    float sums[4] = {};
    const uint32_t fragment[2] = {right[2 * half], right[2 * half + 1]};
    multiply_add<kType>(sums, left, fragment);
    for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 16 + 8 * half + lane % 4 * 2 + i % 2] = sums[i];
  }
}

// Small integers, which every type represents.
int element(int i, int factor) {
  return i * factor % 13 - 6;
}

template <Half kType>
uint16_t half_of(int value) {
  return kType == Half::kBFloat16 ? float_to_bfloat16(value) : float_to_half(value);
}

template <Half kType, bool kTransposed>
void product() {
  Memory a(512), b(512), c(1024);
  for (int i = 0; i < 256; ++i) {
    reinterpret_cast<uint16_t*>(a.data())[i] = half_of<kType>(element(i, 7));
    reinterpret_cast<uint16_t*>(b.data())[i] = half_of<kType>(element(i, 5));
  }
  launch(
      false, product_kernel<kType, kTransposed>, 1, 32, 1024, reinterpret_cast<uint16_t*>(a.data()),
      reinterpret_cast<uint16_t*>(b.data()), floats(c));
  for (int row = 0; row < 16; ++row)
    for (int n = 0; n < 16; ++n) {
      int sum = 0;
      for (int k = 0; k < 16; ++k)
        sum += element(16 * row + k, 7) * element(kTransposed ? 16 * k + n : 16 * n + k, 5);
      check(floats(c)[16 * row + n] == sum, "wrong product");
    }
}

__global__ void tf32_kernel(const float* a, const float* b, float* c) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t left[4], right[2];
  float sums[4] = {1, 1, 1, 1};
  for (int i = 0; i < 4; ++i) memcpy(&left[i], &a[(g + i % 2 * 8) * 8 + t + i / 2 * 4], 4);
  for (int i = 0; i < 2; ++i) memcpy(&right[i], &b[(t + 4 * i) * 8 + g], 4);
  multiply_add_tf32(sums, left, right);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

void tf32() {
  Memory a(512), b(256), c(512);
  for (int i = 0; i < 128; ++i)
    floats(a)[i] = element(i, 7) * 1.0000001f;  // what TF32 cannot hold is cut off
  for (int i = 0; i < 64; ++i) floats(b)[i] = element(i, 5);
  launch(false, tf32_kernel, 1, 32, 0, floats(a), floats(b), floats(c));
  for (int row = 0; row < 16; ++row)
    for (int n = 0; n < 8; ++n) {
      int sum = 1;
      for (int k = 0; k < 8; ++k) sum += element(8 * row + k, 7) * element(8 * k + n, 5);
      check(floats(c)[8 * row + n] == sum, "wrong product");
    }
}

// A warpgroup: 64x32 times 32x64, a from memory to registers, b by a bulk copy to shared memory, in the order
// of its descriptor. What may be wrong with it:
enum class Fault {
  kNone,
  kNoInit,
  kNoProxyFence,
  kNoExpect,
  kMisaligned,
  kNoCopyWait,
  kWrongRound,
  kNoFence,
  kNoCommit,
  kNoWait,
  kFactorsChange,
  kWeightsChange,
  kBeyond
};

template <Fault kFault>
__global__ void warpgroup_kernel(const uint16_t* a, const uint16_t* b, float* c) {
  constexpr int kColumns = 64, kGroupBytes = kColumns * 16, kBytes = 4 * kGroupBytes;
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
  uint16_t* const shared = reinterpret_cast<uint16_t*>(dynamic_shared() + 16);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, pair = lane % 4 * 2;
  if (threadIdx.x == 0) {
    if (kFault != Fault::kNoInit) barrier_init(barrier, 1);
    if (kFault != Fault::kNoProxyFence) async_proxy_fence();
    barrier_expect(barrier, kFault == Fault::kNoExpect ? 0 : kBytes);
    copy_bulk(shared, b, kBytes - (kFault == Fault::kMisaligned ? 8 : 0), barrier);
  }
  __syncthreads();
  if (kFault != Fault::kNoCopyWait) barrier_wait(barrier, kFault == Fault::kWrongRound ? 1 : 0);
  float sums[kColumns / 2] = {};
  uint32_t left[2][4];
  for (int step = 0; step < 2; ++step)
    for (int i = 0; i < 4; ++i)
      memcpy(&left[step][i], a + (row + i % 2 * 8) * 32 + 16 * step + i / 2 * 8 + pair, 4);
  if (kFault != Fault::kNoFence) warpgroup_fence();
  for (int step = 0; step < 2; ++step)
    warpgroup_multiply_add<Half::kBFloat16, kColumns>(
        sums, left[step],
        descriptor(shared + step * 16 * kColumns + (kFault == Fault::kBeyond ? 8 : 0), 128, kGroupBytes));
  if (kFault != Fault::kNoCommit) warpgroup_commit();
  if (kFault == Fault::kFactorsChange) left[1][0] = 0;
  if (kFault == Fault::kWeightsChange) shared[8 * threadIdx.x] = 0;
  if (kFault != Fault::kNoWait) warpgroup_wait(sums);
  for (int i = 0; i < kColumns / 2; ++i)
    c[(row + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + pair + i % 2] = sums[i];
  warpgroup_wait(sums);
}

template <Fault kFault>
void warpgroup() {
  constexpr int kRows = 64, kDepth = 32, kColumns = 64;
  Memory a(kRows * kDepth * 2), b(kDepth * kColumns * 2), c(kRows * kColumns * 4);
  for (int row = 0; row < kRows; ++row)
    for (int k = 0; k < kDepth; ++k)
      reinterpret_cast<uint16_t*>(a.data())[row * kDepth + k] =
          half_of<Half::kBFloat16>(element(row * kDepth + k, 7));
  for (int k = 0; k < kDepth; ++k)
    for (int n = 0; n < kColumns; ++n)
      reinterpret_cast<uint16_t*>(b.data())[(k / 8 * kColumns + n) * 8 + k % 8] =
          half_of<Half::kBFloat16>(element(k * kColumns + n, 5));
  launch(
      false, warpgroup_kernel<kFault>, 1, 128, 16 + b.size(), reinterpret_cast<uint16_t*>(a.data()),
      reinterpret_cast<uint16_t*>(b.data()), floats(c));
  for (int row = 0; row < kRows; ++row)
    for (int n = 0; n < kColumns; ++n) {
      int sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += element(row * kDepth + k, 7) * element(k * kColumns + n, 5);
      check(floats(c)[row * kColumns + n] == sum, "wrong product");
    }
}

__global__ void shuffle_kernel(float* y) {
  float sum = threadIdx.x;
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, mask);
  y[threadIdx.x] = sum + __shfl_sync(0xFFFFFFFFu, threadIdx.x, 3);
}

void shuffle() {
  Memory y(128);
  launch(false, shuffle_kernel, 1, 32, 0, floats(y));
  for (int i = 0; i < 32; ++i) check(floats(y)[i] == 31 * 16 + 3, "wrong sum");
}

const std::map<std::string, void (*)()> kCases{
    {"sum", sum<true>},
    {"sum-without-barrier", sum<false>},
    {"copy", copy<true>},
    {"copy-without-wait", copy<false>},
    {"copy-pending", pending},
    {"copy-misaligned", misaligned},
    {"read", read<0>},
    {"read-out-of-bounds", read<1>},
    {"shared", shared<0>},
    {"shared-out-of-bounds", shared<1>},
    {"write", write<1>},
    {"write-not-all", write<2>},
    {"grid", grid<1, true>},
    {"grid-one-barrier-more", grid<2, true>},
    {"grid-not-cooperative", grid<1, false>},
    {"grid-counter", counter<0>},
    {"grid-counter-not-zero", counter<1>},
    {"flag", flag<true>},
    {"flag-never-set", flag<false>},
    {"barrier", place<true>},
    {"barrier-at-two-places", place<false>},
    {"product-bfloat16", product<Half::kBFloat16, false>},
    {"product-float16", product<Half::kFloat16, false>},
    {"product-transposed", product<Half::kBFloat16, true>},
    {"product-tf32", tf32},
    {"shuffle", shuffle},
    {"warpgroup", warpgroup<Fault::kNone>},
    {"warpgroup-without-init", warpgroup<Fault::kNoInit>},
    {"warpgroup-without-proxy-fence", warpgroup<Fault::kNoProxyFence>},
    {"warpgroup-without-expect", warpgroup<Fault::kNoExpect>},
    {"warpgroup-misaligned", warpgroup<Fault::kMisaligned>},
    {"warpgroup-without-copy-wait", warpgroup<Fault::kNoCopyWait>},
    {"warpgroup-wrong-round", warpgroup<Fault::kWrongRound>},
    {"warpgroup-without-fence", warpgroup<Fault::kNoFence>},
    {"warpgroup-without-commit", warpgroup<Fault::kNoCommit>},
    {"warpgroup-without-wait", warpgroup<Fault::kNoWait>},
    {"warpgroup-factors-change", warpgroup<Fault::kFactorsChange>},
    {"warpgroup-weights-change", warpgroup<Fault::kWeightsChange>},
    {"warpgroup-beyond", warpgroup<Fault::kBeyond>},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 1)
    for (const auto& each : kCases) puts(each.first.c_str());
  if (count != 3) return count == 1 ? 0 : 2;
  machine.seed = std::stoi(arguments[2]);
  try {
    kCases.at(arguments[1])();
  } catch (const std::exception& error) {
    puts(error.what());
    return 1;
  }
  return 0;
}
