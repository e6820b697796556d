// Memory formats: between the caller's images (...,C,H,W) and the channels-last memory (...,H,W,C) in which
// the kernels work.
#pragma once
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "../tensors.h"
#include "gates.h"
#include "memory.h"
#include "schedule.h"

namespace convgru::cpu {

// Strides that a dense channels-last (...,C,H,W) has, up to axes of size 1.
inline bool is_dense_channels_last(const Tensor& images) {
  const int64_t dim = images.dim();
  int64_t expected = 1;
  std::vector<int64_t> order{dim - 3, dim - 1, dim - 2};
  for (int64_t axis = dim - 4; axis >= 0; --axis) order.push_back(axis);
  for (const int64_t axis : order) {
    if (images.size(axis) != 1 && images.stride(axis) != expected) return false;
    expected *= images.size(axis);
  }
  return true;
}

// Tensors of so many bytes get memory that is kept.
constexpr size_t kKeptTensorBytes = size_t(256) << 10;

// An uninitialised contiguous tensor of the dtype of `like`.
inline Tensor empty_tensor(const Tensor& like, const std::vector<int64_t>& shape) {
  size_t bytes = like.element_size();
  for (const int64_t size : shape) bytes *= size;
  if (bytes < kKeptTensorBytes) return new_tensor(like, shape);
  size_t got = bytes;
  void* memory = take_tensor_memory(got);
  return stable::from_blob(
      memory, shape, contiguous_strides(shape), like.device(), like.scalar_type(),
      [got](void* blob) { give_back_tensor_memory(blob, got); });
}

// An uninitialised (...,C,H,W) like `like`, whose memory is a dense (...,H,W,C) or contiguous.
inline Tensor empty_images(const Tensor& like, std::vector<int64_t> shape, bool channels_last) {
  if (!channels_last) return empty_tensor(like, shape);
  std::rotate(shape.end() - 3, shape.end() - 2, shape.end());
  return channels_first_view(empty_tensor(like, shape));
}

// One image of `channels` by `pixels` elements: (C,H,W) or, channels last, (H,W,C). No data: zeros.
template <class T>
struct Image {
  const T* data;
  bool channels_last;
};

// Elements that are worth a thread, and pixels of an image that are transposed at a time.
constexpr int64_t kPieceElements = 16 << 10;
constexpr int64_t kTransposePixels = 512;

// A stage over images (steps,samples) of so many channels, those of the grid or of one pixel: f(image, first
// pixel, pixels).
template <class F>
Stage over_images(const Grid& grid, int64_t images, int64_t channels, int64_t pixels, const F& f) {
  const bool whole = pixels != grid.pixels();
  const int64_t unit = whole ? pixels : grid.width, height = grid.height;  // pixels that are not torn apart
  const int64_t wanted = std::max(kTransposePixels, kPieceElements / std::max<int64_t>(1, channels));
  return {
      pieces(grid, images, whole ? height : 1, (wanted + unit - 1) / unit), [=](int64_t, const Rows& rows) {
        for (auto [row, end] = rows; row < end;) {
          const int64_t image = row / height, next = std::min(end, (image + 1) * height);
          const int64_t first = whole ? 0 : (row - image * height) * unit;
          f(image, first, whole ? pixels : (next - row) * unit);
          row = next;
        }
      }};
}

// Gathers images (steps,samples) into dense channels-last memory (steps,samples,pixels,channels).
template <class T>
Stage to_channels_last(
    const Grid& grid, std::vector<Image<T>> images, int64_t channels, int64_t pixels, T* target) {
  const int64_t count = static_cast<int64_t>(images.size());
  return over_images(
      grid, count, channels, pixels, [=, images = std::move(images)](int64_t i, int64_t first, int64_t some) {
        const Image<T>& image = images[i];
        T* piece = target + (i * pixels + first) * channels;
        if (image.data == nullptr)
          memset(static_cast<void*>(piece), 0, some * channels * sizeof(T));
        else if (image.channels_last)
          memcpy(static_cast<void*>(piece), image.data + first * channels, some * channels * sizeof(T));
        else
          gate_kernels<T>().transpose(channels, some, image.data + first, pixels, piece, channels);
      });
}

// Spreads channels-last memory, `stride` elements a pixel, into contiguous images (steps,samples,channels,
// pixels) or, channels last, (steps,samples,pixels,channels).
template <class T>
Stage from_channels_last(
    const Grid& grid, const T* memory, int64_t stride, int64_t images, int64_t channels, bool channels_last,
    T* target) {
  const int64_t pixels = grid.pixels();
  return over_images(grid, images, channels, pixels, [=](int64_t image, int64_t first, int64_t some) {
    const T* piece = memory + (image * pixels + first) * stride;
    T* target_image = target + image * pixels * channels;
    if (!channels_last)
      return gate_kernels<T>().transpose(some, channels, piece, stride, target_image + first, pixels);
    for (int64_t pixel = 0; pixel < some; ++pixel)
      memcpy(
          static_cast<void*>(target_image + (first + pixel) * channels), piece + pixel * stride,
          channels * sizeof(T));
  });
}

// A tensor (...,C,H,W) as a sequence of images of a grid, or of one pixel each, read where they lie; other
// strides than the two usual ones are copied first. Of a sequence (T,N,C,H,W) with lengths (N,) images past a
// sample's length are zeros, whatever the caller has there.
template <class T>
class Images {
 public:
  Images(const Tensor& images, const Grid& grid, const int64_t* lengths = nullptr)
      : grid_(grid),
        channels_last_(is_dense_channels_last(images)),
        memory_(channels_last_ ? images : as_contiguous(images)),
        lengths_(lengths),
        channels_(images.size(images.dim() - 3)),
        pixels_(images.size(images.dim() - 2) * images.size(images.dim() - 1)) {}

  int64_t channels() const { return channels_; }
  int64_t pixels() const { return pixels_; }

  Image<T> operator[](int64_t i) const {
    if (lengths_ != nullptr && i / grid_.samples >= lengths_[i % grid_.samples]) return {};
    return {data<T>(memory_) + i * channels_ * pixels_, channels_last_};
  }

  // The images [first, first+count), channels last: where they are if that is their format, else in buffer.
  const T* channels_last(int64_t first, int64_t count, Buffer<T>& buffer) const {
    Schedule schedule(grid_);
    const T* memory = channels_last(first, count, buffer, schedule, {}).first;
    schedule.run();
    return memory;
  }

  // The same when the stage has run; kNoStage if there is nothing to do.
  std::pair<const T*, int> channels_last(
      int64_t first, int64_t count, Buffer<T>& buffer, Schedule& schedule, std::vector<After> after) const {
    if (channels_last_ && lengths_ == nullptr) return {(*this)[first].data, kNoStage};
    if (buffer.get() == nullptr) buffer = Buffer<T>(count * channels_ * pixels_);
    std::vector<Image<T>> images;
    for (int64_t i = 0; i < count; ++i) images.push_back((*this)[first + i]);
    Stage stage = to_channels_last(grid_, std::move(images), channels_, pixels_, buffer.get());
    return {buffer.get(), schedule.add(std::move(stage), std::move(after))};
  }

 private:
  Grid grid_;
  bool channels_last_;
  Tensor memory_;
  const int64_t* lengths_;
  int64_t channels_, pixels_;
};

}  // namespace convgru::cpu
