#include "packed_weights.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <list>
#include <mutex>

#include "memory.h"

namespace convgru::cpu {

namespace {

constexpr size_t kMostBytes = size_t(256) << 20;
constexpr size_t kLargeBytes = size_t(8) << 20;  // of packed weights that do not stay in the caches
constexpr int64_t kCompareBytes = 64 << 10;      // of weights that a thread compares at a time

// What a packed array was made from, apart from the values.
template <class T>
struct Key {
  const ConvolutionKernels<T>* kernels;
  std::vector<int64_t> layout;
  std::vector<int32_t> outs;
  bool operator==(const Key& other) const = default;
};

template <class T>
Key<T> make_key(const ConvolutionKernels<T>& kernels, const Weights<T>& weights) {
  Key<T> key{&kernels, {weights.out, weights.in, weights.kernel_h, weights.kernel_w}, {}};
  for (int p = 0; p < weights.count; ++p) {
    const WeightPart<T>& part = weights.parts[p];
    key.layout.insert(
        key.layout.end(), {reinterpret_cast<intptr_t>(part.data), part.out_stride, part.in_stride,
                           part.row_stride, part.column_stride, part.first, part.channels});
    key.outs.insert(key.outs.end(), part.outs, part.outs + weights.out);
  }
  return key;
}

template <class T>
using Packed = std::shared_ptr<acc_t<T>[]>;

template <class T>
struct Entry {
  Key<T> key;
  std::vector<char> values;  // a copy of the memory that the packed weights were made from
  Packed<T> packed;
  size_t bytes;
};

std::mutex mutex;
template <class T>
std::list<Entry<T>>& entries() {                // most recently used first
  static auto* list = new std::list<Entry<T>>;  // never destroyed: threads may outlive static destructors
  return *list;
}

template <class T>
bool same_values(const WeightMemory<T> (&memory)[kMostSources], int count, const std::vector<char>& values) {
  std::atomic<bool> same = true;
  const char* kept = values.data();
  for (int p = 0; p < count; ++p) {
    const auto* now = reinterpret_cast<const char*>(memory[p].data);
    const int64_t bytes = memory[p].size * sizeof(T);
    torch::stable::parallel_for(
        0, (bytes + kCompareBytes - 1) / kCompareBytes, 4, [&](int64_t begin, int64_t end) {
          const int64_t first = begin * kCompareBytes, last = std::min(end * kCompareBytes, bytes);
          if (same && memcmp(kept + first, now + first, last - first) != 0) same = false;
        });
    kept += bytes;
  }
  return same;
}

template <class T>
void pack(const ConvolutionKernels<T>& kernels, const Weights<T>& weights, int64_t size, acc_t<T>* packed) {
  const bool past_cache = size * sizeof(acc_t<T>) > kLargeBytes;
  torch::stable::parallel_for(0, kernels.blocks(weights.out), 1, [&](int64_t begin, int64_t end) {
    kernels.pack(begin, end, weights, packed, past_cache);
  });
}

template <class T>
void copy_values(const WeightMemory<T> (&memory)[kMostSources], int count, std::vector<char>& values) {
  values.clear();
  for (int p = 0; p < count; ++p) {
    const auto* now = reinterpret_cast<const char*>(memory[p].data);
    values.insert(values.end(), now, now + memory[p].size * sizeof(T));
  }
}

}  // namespace

template <class T>
std::shared_ptr<const acc_t<T>[]> packed_weights(
    const ConvolutionKernels<T>& kernels, const Weights<T>& weights,
    const WeightMemory<T> (&memory)[kMostSources]) {
  const int64_t taps = kernels.scheme.direct() ? weights.kernel_h * weights.kernel_w : 1;
  const int64_t size = kernels.packed_size(taps * weights.in, weights.out);
  Entry<T> entry{make_key(kernels, weights), {}, nullptr, 0};

  const std::lock_guard<std::mutex> lock(mutex);
  std::list<Entry<T>>& list = entries<T>();
  const auto found =
      std::find_if(list.begin(), list.end(), [&](const Entry<T>& e) { return e.key == entry.key; });
  if (found != list.end()) {
    if (same_values(memory, weights.count, found->values)) {
      list.splice(list.begin(), list, found);
      return found->packed;
    }
    entry = std::move(*found);
    list.erase(found);
  }
  // New values for the same weight go where the old ones were, unless another call is reading those.
  if (entry.packed == nullptr || entry.packed.use_count() > 1)
    entry.packed = Packed<T>(static_cast<acc_t<T>*>(allocate(size * sizeof(acc_t<T>))), deallocate);
  std::atomic_thread_fence(std::memory_order_acquire);  // after the reads of the call that let go of them
  pack(kernels, weights, size, entry.packed.get());
  copy_values(memory, weights.count, entry.values);
  entry.bytes = entry.values.size() + size * sizeof(acc_t<T>);

  const Packed<T> packed = entry.packed;
  list.push_front(std::move(entry));
  size_t bytes = 0;
  for (auto it = list.begin(); it != list.end();) {
    bytes += it->bytes;
    it = bytes > kMostBytes ? list.erase(it) : std::next(it);
  }
  return packed;
}

#define CONVGRU_INSTANTIATE(T)                               \
  template std::shared_ptr<const acc_t<T>[]> packed_weights( \
      const ConvolutionKernels<T>&, const Weights<T>&, const WeightMemory<T>(&)[kMostSources]);
CONVGRU_INSTANTIATE(float)
CONVGRU_INSTANTIATE(double)
CONVGRU_INSTANTIATE(bfloat16)
CONVGRU_INSTANTIATE(float16)

}  // namespace convgru::cpu
