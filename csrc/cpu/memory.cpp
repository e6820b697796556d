#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace convgru::cpu {
namespace {

constexpr size_t kLine = 64;

#if !defined(__SANITIZE_ADDRESS__)
constexpr size_t kHugePage = size_t(2) << 20;
// From here on memory is worth a huge page: besides the faults it saves, its addresses in the second-level
// cache are then not left to chance, which makes up to a quarter of the time.
constexpr size_t kLarge = size_t(256) << 10;

struct Block {
  void* memory;
  size_t bytes;
};

// What a thread keeps, oldest first.
struct Kept {
  std::vector<Block> blocks;
  size_t bytes = 0;
  ~Kept() {
    for (const Block& block : blocks) deallocate(block.memory);
  }
};

Kept& kept() {
  static thread_local Kept value;
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

void deallocate(void* memory) {
  std::free(memory);
}

void* take_memory(size_t& bytes) {
  return allocate(bytes);
}

void give_back_memory(void* memory, size_t) {
  deallocate(memory);
}
#else
void* allocate(size_t bytes) {
  const size_t alignment = bytes >= kLarge ? kHugePage : kLine;
  const size_t size = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, size);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory, size, MADV_HUGEPAGE);  // a wish; failing is no harm
#endif
  return memory;
}

void deallocate(void* memory) {
  std::free(memory);
}

void* take_memory(size_t& bytes) {
  Kept& own = kept();
  // The smallest that is large enough, unless most of it would lie idle.
  auto best = own.blocks.end();
  for (auto block = own.blocks.begin(); block != own.blocks.end(); ++block)
    if (block->bytes >= bytes && block->bytes <= 4 * bytes + kHugePage &&
        (best == own.blocks.end() || block->bytes < best->bytes))
      best = block;
  if (best == own.blocks.end()) return allocate(bytes);
  void* memory = best->memory;
  bytes = best->bytes;
  own.bytes -= bytes;
  own.blocks.erase(best);
  return memory;
}

void give_back_memory(void* memory, size_t bytes) {
  Kept& own = kept();
  own.blocks.push_back({memory, bytes});
  own.bytes += bytes;
  while (own.bytes > kMostKeptBytes) {
    const Block oldest = own.blocks.front();
    own.blocks.erase(own.blocks.begin());
    own.bytes -= oldest.bytes;
    deallocate(oldest.memory);
  }
}

#endif

}  // namespace convgru::cpu
