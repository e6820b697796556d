#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "fork.h"

namespace convgru::cpu {
namespace {

constexpr size_t kLine = 64;

#if !defined(__SANITIZE_ADDRESS__)
constexpr size_t kPage = size_t(4) << 10, kHugePage = size_t(2) << 20;
// From here on memory is worth a huge page: besides the faults it saves, its addresses in the second-level
// cache are then not left to chance, which makes up to a quarter of the time.
constexpr size_t kLarge = size_t(256) << 10;

size_t round_up(size_t bytes, size_t unit) {
  return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit;
}

void* allocate_aligned(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory, bytes / kPage * kPage, MADV_HUGEPAGE);  // failing is no harm
#endif
  return memory;
}

// Memory that waits for its next use, oldest first.
class Kept {
 public:
  ~Kept() {
    for (const Block& block : blocks_) deallocate(block.memory);
  }

  // The smallest block that has room for `bytes` and not more than `most`, or nullptr.
  void* take(size_t& bytes, size_t most) {
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block)
      if (block->bytes >= bytes && block->bytes <= most &&
          (best == blocks_.end() || block->bytes < best->bytes))
        best = block;
    if (best == blocks_.end()) return nullptr;
    void* memory = best->memory;
    bytes = best->bytes;
    bytes_ -= bytes;
    blocks_.erase(best);
    return memory;
  }

  void give_back(void* memory, size_t bytes) {
    blocks_.push_back({memory, bytes});
    bytes_ += bytes;
    while (bytes_ > kMostKeptBytes) {
      const Block oldest = blocks_.front();
      blocks_.erase(blocks_.begin());
      bytes_ -= oldest.bytes;
      deallocate(oldest.memory);
    }
  }

 private:
  struct Block {
    void* memory;
    size_t bytes;
  };
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
};

Kept& kept_by_thread() {
  static thread_local Kept value;
  return value;
}

struct Shared {
  ForkSafeMutex mutex;
  Kept kept;
};
// Never destroyed: tensors may outlive every static object.
Shared& kept_by_process() {
  static Shared& value = *new Shared;
  return value;
}
#endif

}  // namespace

#if defined(__SANITIZE_ADDRESS__)
// Blocks as long as asked for, so that their ends are guarded, full of NaNs, and never kept.
void* allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kLine, std::max<size_t>(bytes, 1)) != 0) throw std::bad_alloc();
  return memset(memory, 0xFF, bytes);
}

void* take_memory(size_t& bytes) {
  return allocate(bytes);
}

void give_back_memory(void* memory, size_t) {
  deallocate(memory);
}

void* take_tensor_memory(size_t& bytes) {
  return allocate(bytes);
}

void give_back_tensor_memory(void* memory, size_t) {
  deallocate(memory);
}
#else
void* allocate(size_t bytes) {
  const size_t alignment = bytes >= kLarge ? kHugePage : kLine;
  return allocate_aligned(round_up(bytes, alignment), alignment);
}

void* take_memory(size_t& bytes) {
  // Unless most of it would lie idle.
  void* memory = kept_by_thread().take(bytes, 4 * bytes + kHugePage);
  return memory != nullptr ? memory : allocate(bytes);
}

void give_back_memory(void* memory, size_t bytes) {
  kept_by_thread().give_back(memory, bytes);
}

void* take_tensor_memory(size_t& bytes) {
  {
    Shared& shared = kept_by_process();
    const std::lock_guard<ForkSafeMutex> lock(shared.mutex);
    void* memory = shared.kept.take(bytes, bytes + bytes / 8);
    if (memory != nullptr) return memory;
  }
  bytes = round_up(bytes, kPage);
  return allocate_aligned(bytes, bytes >= kHugePage ? kHugePage : kPage);
}

void give_back_tensor_memory(void* memory, size_t bytes) {
  Shared& shared = kept_by_process();
  const std::lock_guard<ForkSafeMutex> lock(shared.mutex);
  shared.kept.give_back(memory, bytes);
}
#endif

void deallocate(void* memory) {
  std::free(memory);
}

}  // namespace convgru::cpu
