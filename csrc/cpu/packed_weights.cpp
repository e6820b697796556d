#include "packed_weights.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <list>

#include "fork.h"
#include "memory.h"

namespace convgru::cpu {

namespace {

constexpr size_t kMostBytes = size_t(256) << 20;
constexpr size_t kLargeBytes = size_t(8) << 20;  // of packed weights that do not stay in the caches
constexpr int64_t kPieceBytes = 64 << 10;        // of weights that a thread compares or copies at a time

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
  int64_t size;  // of packed

  size_t bytes() const { return values.size() + size * sizeof(acc_t<T>); }
};

template <class T>
std::list<Entry<T>>& entries() {                // most recently used first
  static auto* list = new std::list<Entry<T>>;  // never destroyed: threads may outlive static destructors
  return *list;
}

// Calls f(now, place, bytes) for all pieces of the weights' memory, of each the place in Entry::values.
template <class T, class F>
void for_pieces(const WeightMemory<T> (&memory)[kMostSources], int count, const F& f) {
  int64_t place = 0;
  for (int p = 0; p < count; ++p) {
    const auto* now = reinterpret_cast<const char*>(memory[p].data);
    const int64_t bytes = memory[p].size * sizeof(T);
    torch::stable::parallel_for(
        0, (bytes + kPieceBytes - 1) / kPieceBytes, 4, [&](int64_t begin, int64_t end) {
          const int64_t first = begin * kPieceBytes, last = std::min(end * kPieceBytes, bytes);
          f(now + first, place + first, last - first);
        });
    place += bytes;
  }
}

template <class T>
bool same_values(const WeightMemory<T> (&memory)[kMostSources], int count, const std::vector<char>& values) {
  std::atomic<bool> same = true;
  for_pieces(memory, count, [&](const char* now, int64_t place, int64_t bytes) {
    if (same && memcmp(values.data() + place, now, bytes) != 0) same = false;
  });
  return same;
}

template <class T>
void pack(const ConvolutionKernels<T>& kernels, const Weights<T>& weights, int64_t size, acc_t<T>* packed) {
  const bool past_cache = size * sizeof(acc_t<T>) > kLargeBytes;
  torch::stable::parallel_for(0, kernels.blocks(weights.out), 1, [&](int64_t begin, int64_t end) {
    kernels.pack(begin, end, weights, packed, past_cache);
  });
}

// Returns the weights as they are there.
template <class T>
Weights<T> copy_values(
    const Weights<T>& weights, const WeightMemory<T> (&memory)[kMostSources], std::vector<char>& values) {
  const int count = weights.count;
  int64_t elements = 0;
  for (int p = 0; p < count; ++p) elements += memory[p].size;
  values.resize(elements * sizeof(T));
  for_pieces(memory, count, [&](const char* now, int64_t place, int64_t bytes) {
    memcpy(values.data() + place, now, bytes);
  });
  Weights<T> copied = weights;
  const T* data = reinterpret_cast<const T*>(values.data());
  for (int p = 0; p < count; ++p) {
    copied.parts[p].data = data + (weights.parts[p].data - memory[p].data);
    data += memory[p].size;
  }
  return copied;
}

// Takes out the oldest entry of that size that nobody reads, if another one would be too many: where weights
// are new tensors at every call, their memory stays the same. Else one without memory.
template <class T>
Entry<T> take_oldest(std::list<Entry<T>>& list, int64_t size) {
  size_t bytes = size * sizeof(acc_t<T>);
  for (const Entry<T>& entry : list) bytes += entry.bytes();
  if (bytes > kMostBytes)
    for (auto entry = list.rbegin(); entry != list.rend(); ++entry) {
      if (entry->size != size || entry->packed.use_count() > 1) continue;
      Entry<T> taken = std::move(*entry);
      list.erase(std::next(entry).base());
      return taken;
    }
  return {};
}

}  // namespace

template <class T>
std::shared_ptr<const acc_t<T>[]> packed_weights(
    const ConvolutionKernels<T>& kernels, const Weights<T>& weights,
    const WeightMemory<T> (&memory)[kMostSources]) {
  const int64_t taps = kernels.scheme.direct() ? weights.kernel_h * weights.kernel_w : 1;
  const int64_t size = kernels.packed_size(taps * weights.in, weights.out);
  Key<T> key = make_key(kernels, weights);

  static ForkSafeMutex& mutex = *new ForkSafeMutex;
  const std::lock_guard<ForkSafeMutex> lock(mutex);
  std::list<Entry<T>>& list = entries<T>();
  const auto found = std::find_if(list.begin(), list.end(), [&](const Entry<T>& e) { return e.key == key; });
  Entry<T> entry;
  if (found == list.end()) {
    entry = take_oldest(list, size);
  } else {
    if (same_values(memory, weights.count, found->values)) {
      list.splice(list.begin(), list, found);
      return found->packed;
    }
    entry = std::move(*found);
    list.erase(found);
  }
  // New values go where the old ones were, unless another call is reading those.
  if (entry.packed == nullptr || entry.packed.use_count() > 1)
    entry.packed = Packed<T>(static_cast<acc_t<T>*>(allocate(size * sizeof(acc_t<T>))), deallocate);
  std::atomic_thread_fence(std::memory_order_acquire);  // after the reads of the call that let go of them
  // From the copy: who writes to the weights meanwhile makes them differ from it.
  pack(kernels, copy_values(weights, memory, entry.values), size, entry.packed.get());
  entry.key = std::move(key);
  entry.size = size;

  const Packed<T> packed = entry.packed;
  list.push_front(std::move(entry));
  size_t bytes = 0;
  for (auto it = list.begin(); it != list.end();) {
    bytes += it->bytes();
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
