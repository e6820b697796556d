// Memory for the kernels and their results: aligned, in huge pages where it is large, and kept for the next
// call, scratch memory by the calling thread, that of tensors by the process. Memory fresh from the system
// costs a page fault for every 4 KiB, which is up to a fifth of the time of a call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace convgru::cpu {

// At most so much is kept by a thread between calls, and by the process for tensors.
constexpr size_t kMostKeptBytes = size_t(256) << 20;

// Uninitialised memory, aligned to a cache line at least. Throws std::bad_alloc.
void* allocate(size_t bytes);
void deallocate(void* memory);

// From the memory that this thread keeps; `bytes` is rounded up to what was got.
void* take_memory(size_t& bytes);
void give_back_memory(void* memory, size_t bytes);

// The same from what the process keeps, with little to spare, for who may hold it long; any thread may give
// it back.
void* take_tensor_memory(size_t& bytes);
void give_back_tensor_memory(void* memory, size_t bytes);

// Scratch memory of one call. To be destroyed by the thread that made it.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : bytes_(count * sizeof(T)), data_(static_cast<T*>(take_memory(bytes_))) {}
  Buffer(Buffer&& other) noexcept
      : bytes_(std::exchange(other.bytes_, 0)), data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) give_back_memory(data_, bytes_);
  }

  T* get() const { return data_; }

 private:
  size_t bytes_ = 0;
  T* data_ = nullptr;
};

}  // namespace convgru::cpu
