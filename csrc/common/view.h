// How pictures and noise are seen: a value of the bank covers a block of grain x grain pixels, and a picture may be shown
// cropped and mirrored, keyed by its id. Shared by the CPU and the CUDA code; the twin of fastue/ops/_grain.py.
#pragma once

#include "philox.h"

namespace fastue {

// A pixel of a picture, or a place near it.
struct Pixel {
  int32_t y, x;
};

// The pixels of one value of the bank: those from (top, left) to before (bottom, right).
struct Block {
  int32_t top, left, bottom, right;

  FASTUE_HD FASTUE_INLINE int32_t pixels() const { return (bottom - top) * (right - left); }
};

// 32 bits do for a picture, and a GPU divides them in a fraction of the time.
struct View {
  int32_t height = 0, width = 0;  // of a picture
  int32_t grain = 1;              // the last blocks of a line and of a column may be smaller
  const int64_t* ids = nullptr;   // null: no crop and flip
  uint64_t seed = 0;
  int64_t epoch = 0, pad = 0;
  bool flip = false;

  FASTUE_HD FASTUE_INLINE bool plain() const { return grain == 1 && ids == nullptr; }
  // Of the bank: blocks in a line, and values of a channel.
  FASTUE_HD FASTUE_INLINE int32_t columns() const { return (width + grain - 1) / grain; }
  FASTUE_HD FASTUE_INLINE int32_t blocks() const { return (height + grain - 1) / grain * columns(); }

  FASTUE_HD FASTUE_INLINE Block block(int32_t b) const {
    const int32_t line = b / columns(), top = line * grain, left = (b - line * columns()) * grain;
    const int32_t bottom = top + grain, right = left + grain;
    return {top, left, bottom < height ? bottom : height, right < width ? right : width};
  }
  FASTUE_HD FASTUE_INLINE bool inside(Pixel p) const { return p.y >= 0 && p.y < height && p.x >= 0 && p.x < width; }
  // Where a pixel inside of a picture lies in it, and its block in the bank.
  FASTUE_HD FASTUE_INLINE int32_t at(Pixel p) const { return p.y * width + p.x; }
  FASTUE_HD FASTUE_INLINE int32_t block_at(Pixel p) const { return p.y / grain * columns() + p.x / grain; }

  FASTUE_HD FASTUE_INLINE CropFlip window(int64_t i) const {
    return ids == nullptr ? CropFlip{0, 0, false} : crop_flip(ids[i], seed, epoch, pad, flip);
  }
  // Where a pixel of a picture is shown; outside where it is cut away.
  FASTUE_HD FASTUE_INLINE Pixel shown(const CropFlip& window, Pixel p) const {
    const int32_t column = p.x - window.right;
    return {p.y - window.down, window.mirrored ? width - 1 - column : column};
  }
  // Which pixel is shown at `to`; outside where it is border.
  FASTUE_HD FASTUE_INLINE Pixel source(const CropFlip& window, Pixel to) const {
    return {to.y + window.down, (window.mirrored ? width - 1 - to.x : to.x) + window.right};
  }
};

// One channel of one picture: pixel p is at data[p * step].
template <class T>
struct Plane {
  T* data;
  int64_t step;

  FASTUE_HD FASTUE_INLINE Plane(const Pictures& t, int64_t row, int64_t channel, int64_t channels, int64_t area)
      : data(static_cast<T*>(t.data) + (t.interleaved ? row * area * channels + channel : (row * channels + channel) * area)),
        step(t.interleaved ? channels : 1) {}
  FASTUE_HD FASTUE_INLINE T& operator[](int64_t p) const { return data[p * step]; }
};

// The gradient of a block's value: the sum over its pixels as they were shown, line by line.
template <class G>
FASTUE_HD FASTUE_INLINE float gradient_of(const View& view, const CropFlip& window, const Block& block, const Plane<G>& grad) {
  float sum = 0.0f;
  for (int32_t y = block.top; y < block.bottom; ++y)
    for (int32_t x = block.left; x < block.right; ++x) {
      const Pixel to = view.shown(window, {y, x});
      if (view.inside(to)) sum += to_float(grad[view.at(to)]);
    }
  return sum;
}

// How far a block's value may go: as far as the pixel with the most room, the others are clamped where they are shown.
struct Room {
  float darker = 0.0f, brighter = 0.0f;
};

FASTUE_HD FASTUE_INLINE Room room_of(const View& view, const Block& block, const Plane<const uint8_t>& x) {
  Room room;
  for (int32_t line = block.top; line < block.bottom; ++line)
    for (int32_t column = block.left; column < block.right; ++column) {
      const float p = pixel(x[view.at({line, column})]);
      room.darker = p > room.darker ? p : room.darker;
      room.brighter = 1.0f - p > room.brighter ? 1.0f - p : room.brighter;
    }
  return room;
}

}  // namespace fastue
