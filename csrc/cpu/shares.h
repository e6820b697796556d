// Which thread does which work. Images are cut into as many shares as there are threads, the first rows for
// the first thread, and every kernel that goes over them does so by the same shares: what a thread reads it
// has mostly written itself, which lies in its own caches. Threads may sit on parts of a machine between
// which a cache line takes as long as from memory.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace convgru::cpu {

// Items of work, each of which belongs to one thread. A thread that is done with its own takes those of the
// others, the last first.
class Shares {
 public:
  // owner(i): the thread that item i of [0, items) belongs to.
  template <class Owner>
  Shares(int64_t items, int64_t threads, const Owner& owner) : order_(items), ranges_(threads) {
    std::vector<int64_t> owners(items), first(threads + 1);
    for (int64_t i = 0; i < items; ++i) ++first[(owners[i] = owner(i)) + 1];
    for (int64_t thread = 0; thread < threads; ++thread) {
      first[thread + 1] += first[thread];
      ranges_[thread].value = pack(first[thread], first[thread + 1]);
    }
    for (int64_t i = 0; i < items; ++i) order_[first[owners[i]]++] = i;
  }

  // An item for this thread that nobody has had yet, or -1.
  int64_t next(int64_t thread) {
    const int64_t own = take(ranges_[thread].value, /*last=*/false);
    if (own >= 0) return own;
    const int64_t threads = static_cast<int64_t>(ranges_.size());
    for (int64_t i = 1; i < threads; ++i) {
      const int64_t other = take(ranges_[(thread + i) % threads].value, /*last=*/true);
      if (other >= 0) return other;
    }
    return -1;
  }

 private:
  // [begin, end) of order_, in one word, so that owner and others can take from it at the same time.
  struct alignas(64) Range {
    std::atomic<uint64_t> value;
  };
  static uint64_t pack(uint64_t begin, uint64_t end) { return begin << 32 | end; }

  int64_t take(std::atomic<uint64_t>& range, bool last) {
    uint64_t value = range.load(std::memory_order_relaxed);
    while (true) {
      const uint64_t begin = value >> 32, end = value & 0xFFFFFFFF;
      if (begin >= end) return -1;
      const uint64_t rest = last ? pack(begin, end - 1) : pack(begin + 1, end);
      if (range.compare_exchange_weak(value, rest, std::memory_order_relaxed))
        return order_[last ? end - 1 : begin];
    }
  }

  std::vector<int64_t> order_;
  std::vector<Range> ranges_;
};

// The thread whose share the row of some images (step, sample, row) is in.
inline int64_t share_of_row(int64_t row, int64_t samples, int64_t height, int64_t threads) {
  const int64_t rows = samples * height;
  return row % rows * threads / rows;
}

}  // namespace convgru::cpu
