// CUDA building blocks for pictures in a view (view.h): a thread owns one value of the bank, and what shows it. Each of
// its pixels is read and written alone, wherever the crop has moved it.
#pragma once

#include "device.h"

namespace fastue {

// Which value of a row of the bank a thread owns: neighbours lie side by side in memory.
struct Owned {
  int32_t channel, block;

  __device__ FASTUE_INLINE Owned(const Pictures& bank, int32_t value, int32_t channels, int32_t blocks) {
    channel = bank.interleaved ? value % channels : value / blocks;
    block = bank.interleaved ? value / channels : value % blocks;
  }
};

// Where a thread writes the next input: one channel of picture i in `out`.
struct Next {
  const View& view;
  const CropFlip& window;
  const Normalisation& norm;
  const Pictures& out;
  int64_t i;
  int32_t channel, channels;
};

// Writes the pixels of a block whose value is n, and the border that lies where the block lies: all blocks together
// write each pixel once.
template <class T>
__device__ FASTUE_INLINE void show_as(const Next& next, const Block& block, const Plane<const uint8_t>& x, float n) {
  const View& view = next.view;
  const Plane<T> out(next.out, next.i, next.channel, next.channels, view.height * view.width);
  const float mean = next.norm.mean[next.channel], inverse = next.norm.inverse[next.channel];  // 0 and 1 where off
  const auto put = [&](Pixel to, float v) { out[view.at(to)] = narrowed<T>((v - mean) * inverse); };
  for (int32_t y = block.top; y < block.bottom; ++y)
    for (int32_t column = block.left; column < block.right; ++column) {
      const Pixel here = {y, column}, to = view.shown(next.window, here);
      if (view.inside(to)) put(to, clamp(pixel(x[view.at(here)]) + n, 0.0f, 1.0f));
      if (!view.inside(view.source(next.window, here))) put(here, 0.0f);
    }
}

__device__ FASTUE_INLINE void show_block(const Next& next, const Block& block, const Plane<const uint8_t>& x, float n) {
  switch (next.out.type) {
    case Type::f32: return show_as<float>(next, block, x, n);
    case Type::bf16: return show_as<__nv_bfloat16>(next, block, x, n);
    default: return show_as<__half>(next, block, x, n);
  }
}

}  // namespace fastue
