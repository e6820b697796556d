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
constexpr int64_t kCompareBytes = 64 << 10;  // of weights that a thread compares at a time

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
struct Entry {
  Key<T> key;
  std::vector<char> values;  // a copy of the memory that the packed weights were made from
  std::shared_ptr<const acc_t<T>[]> packed;
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
std::shared_ptr<const acc_t<T>[]> pack(
    const ConvolutionKernels<T>& kernels, const Weights<T>& weights, int64_t size) {
  const std::shared_ptr<acc_t<T>[]> packed(
      static_cast<acc_t<T>*>(allocate(size * sizeof(acc_t<T>))), deallocate);
  torch::stable::parallel_for(0, kernels.blocks(weights.out), 1, [&](int64_t begin, int64_t end) {
    kernels.pack(begin, end, weights, packed.get());
  });
  return packed;
}

}  // namespace

template <class T>
std::shared_ptr<const acc_t<T>[]> packed_weights(
    const ConvolutionKernels<T>& kernels, const Weights<T>& weights,
    const WeightMemory<T> (&memory)[kMostSources]) {
  const int64_t taps = kernels.scheme.direct() ? weights.kernel_h * weights.kernel_w : 1;
  const int64_t size = kernels.packed_size(taps * weights.in, weights.out);
  Key<T> key = make_key(kernels, weights);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    std::list<Entry<T>>& list = entries<T>();
    const auto entry =
        std::find_if(list.begin(), list.end(), [&](const Entry<T>& e) { return e.key == key; });
    if (entry != list.end()) {
      if (same_values(memory, weights.count, entry->values)) {
        list.splice(list.begin(), list, entry);
        return entry->packed;
      }
      list.erase(entry);
    }
  }
  Entry<T> entry{std::move(key), {}, pack(kernels, weights, size), size * sizeof(acc_t<T>)};
  for (int p = 0; p < weights.count; ++p) {
    const auto* values = reinterpret_cast<const char*>(memory[p].data);
    entry.values.insert(entry.values.end(), values, values + memory[p].size * sizeof(T));
  }
  entry.bytes += entry.values.size();
  const auto packed = entry.packed;
  const std::lock_guard<std::mutex> lock(mutex);
  std::list<Entry<T>>& list = entries<T>();
  list.push_front(std::move(entry));
  size_t bytes = 0;
  for (auto it = list.begin(); it != list.end();) {
    bytes += it->bytes;
    it = bytes > kMostBytes ? list.erase(it) : std::next(it);
  }
  return packed;
}

#define CONVGRU_INSTANTIATE(T)                                                                 \
  template std::shared_ptr<const acc_t<T>[]> packed_weights(                                   \
      const ConvolutionKernels<T>&, const Weights<T>&, const WeightMemory<T> (&)[kMostSources]);
CONVGRU_INSTANTIATE(float)
CONVGRU_INSTANTIATE(double)
CONVGRU_INSTANTIATE(bfloat16)
CONVGRU_INSTANTIATE(float16)

}  // namespace convgru::cpu
