// CPU building blocks: a picture is worked on in tiles that fit the L1 cache, in the layout of the noise bank. A tensor
// that is float32 and laid out like the bank is used where it lies; any other is converted to or from a tile first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "pictures.h"

// One portable binary with AVX-512, AVX2 and baseline code; the loader picks. GCC on Linux x86-64 only.
// FASTUE_BASELINE leaves the baseline alone: a third of the compile time, for tests.
#if !defined(FASTUE_BASELINE) && defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FASTUE_X86_CLONES
#define FASTUE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define FASTUE_V4 __attribute__((target("arch=x86-64-v4")))  // by hand, behind __builtin_cpu_supports
#else
#define FASTUE_CLONES
#endif

namespace fastue {

struct bf16 {
  uint16_t bits;
};
#if defined(__FLT16_MANT_DIG__)
using f16 = _Float16;
#else
#error "this compiler has no _Float16 (GCC 12 or clang 15 have)"
#endif

FASTUE_INLINE float to_float(f16 v) { return static_cast<float>(v); }
FASTUE_INLINE float to_float(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

}  // namespace fastue

#include "view.h"  // its templates call the to_float above

namespace fastue {

// From values to types: f is called with a value of what is at hand.
template <class F>
FASTUE_INLINE void as_bank(Type type, const F& f) {
  type == Type::s8 ? f(int8_t{}) : f(float{});
}
template <class F>
FASTUE_INLINE void as_float(Type type, const F& f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::bf16: return f(bf16{});
    default: return f(f16{});
  }
}

// Elements of a tile: a multiple of 3 channels x 16 lanes, and three float tiles stay within 24 KiB.
constexpr int64_t kTile = 1536;
// Outputs from this size on are written past the cache: they would not be in it any more when they are read.
constexpr int64_t kStreamBytes = int64_t{4} << 20;

// Which part of picture `row` a tile is, in the working layout: `pixels` pixels of all channels from pixel `first` on
// (interleaved), or of one channel (planar).
struct Tile {
  int64_t row, channel, first, pixels, elements;
};

// The pictures' common shape and the working layout.
struct Shape {
  int64_t channels, area;  // area = H*W
  bool interleaved;

  int64_t tile_pixels() const { return interleaved ? kTile / channels : kTile; }
  int64_t tiles_per_plane() const { return (area + tile_pixels() - 1) / tile_pixels(); }
  int64_t tiles() const { return tiles_per_plane() * (interleaved ? 1 : channels); }  // of one picture
  Tile tile(int64_t row, int64_t t) const {
    const int64_t channel = t / tiles_per_plane(), first = t % tiles_per_plane() * tile_pixels();
    return part(row, channel, first, std::min(tile_pixels(), area - first));
  }
  Tile part(int64_t row, int64_t channel, int64_t first, int64_t pixels) const {
    return {row, channel, first, pixels, interleaved ? pixels * channels : pixels};
  }
  // Where the tile starts in a tensor of the working layout.
  int64_t offset(const Tile& t) const {
    return t.row * channels * area + (interleaved ? t.first * channels : t.channel * area + t.first);
  }
};

// Whether a tile lies in `from` in one piece, in the working layout.
inline bool in_place(const Pictures& from, const Shape& s) {
  return from.interleaved == s.interleaved || s.channels == 1;
}
// The tile as floats: where it lies if it is float32 in the working layout, else converted into `scratch`.
const float* load(const Pictures& from, const Shape& s, const Tile& t, float* scratch);
// The same for uint8 pictures.
const uint8_t* load_bytes(const Pictures& from, const Shape& s, const Tile& t, uint8_t* scratch);
// clamp(pixel(x) + scale*stored, 0, 1) of the int8 state.
void add_bytes(float* v, const int8_t* stored, float scale, const uint8_t* x, int64_t count);
// In place: (v - mean) * (1/std).
void normalise(float* v, const Normalisation& norm, const Shape& s, const Tile& t);
// Round a float tile to the type and layout of `to`; `stream` writes past the cache where that is possible.
void store(const float* from, const Pictures& to, const Shape& s, const Tile& t, bool stream);

// Coarse noise: from the pixels of a line to the values whose blocks they lie in, and back. `per` is how many values lie
// side by side: the channels (interleaved) or 1. A line may come in parts: v and x are its pixels `first` to before `last`.
//
// Adds to each block's sum, pixel after pixel.
void add_to_blocks(float* sum, const float* v, int64_t first, int64_t last, int64_t per, int64_t grain);
// The other way round: each pixel its block's value.
void show_blocks(float* v, const float* value, int64_t first, int64_t last, int64_t per, int64_t grain);
// From the darkest and the brightest value of each column to those of each block, in place.
void bound_blocks(uint8_t* low, uint8_t* high, int64_t width, int64_t per, int64_t grain);
// A tile within line y of a tensor that is cropped as the view says, read back: 0 where a pixel was cut away.
const float* load_back(const Pictures& from, const Shape& s, const View& view, const CropFlip& window, const Tile& t,
                       int64_t y, float* scratch);

// f(tile, first pixel, the pixel behind the last) for the parts of line y that fit a tile; where they can, at whole blocks.
template <class F>
FASTUE_INLINE void each_part(const Shape& s, const View& view, int64_t row, int64_t channel, int64_t y, const F& f) {
  const int64_t width = view.width, grain = view.grain, most = s.tile_pixels();
  const int64_t wide = grain < most ? most / grain * grain : most;
  for (int64_t first = 0; first < width; first += wide) {
    const int64_t pixels = std::min(wide, width - first);
    f(s.part(row, channel, y * width + first, pixels), first, first + pixels);
  }
}

// Pictures as a model sees them: protected, cropped and mirrored, normalised.
struct Showing {
  Pictures x, noise, out;
  Shape shape;  // of the pictures; the working layout is the bank's
  View view;
  const int64_t* index;
  float scale;
  Normalisation norm;
  bool stream;

  // How many values lie side by side, and so how many planes there are.
  int64_t per() const { return shape.interleaved ? shape.channels : 1; }
  int64_t planes() const { return shape.interleaved ? 1 : shape.channels; }
  // Where line r of the blocks of a picture's plane begins in the bank.
  int64_t blocks_at(int64_t i, int64_t channel, int64_t r) const {
    Shape coarse = shape;
    coarse.area = view.blocks();
    return coarse.offset(coarse.part(index[i], channel, r * view.columns(), view.columns()));
  }
};
// Writes picture i of `out`. For any view; without one, tiles are faster than lines.
void show(const Showing& job, int64_t i);
// After streamed stores, before another thread may read them.
void fence();

}  // namespace fastue
