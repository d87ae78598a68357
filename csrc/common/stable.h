// Between torch's stable ABI and the tiles: the only header here that knows tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "tile.h"

namespace fastue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Contiguous in the order [N, C, H, W] (planar) or [N, H, W, C] (interleaved); sizes of 1 may have any stride.
inline bool dense(const Tensor& t, bool interleaved) {
  static constexpr int kPlanar[] = {3, 2, 1, 0}, kInterleaved[] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int d : interleaved ? kInterleaved : kPlanar) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline Type type_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Half: return Type::f16;
    case ScalarType::Char: return Type::s8;
    case ScalarType::Byte: return Type::u8;
    default: STD_TORCH_CHECK(false, name, " has a dtype this kernel does not take");
  }
}

// The checks of the Python side are repeated as far as memory safety needs them: this can be called without it.
inline void same_device(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.get_device_index() == x.get_device_index(), name, " is on device ", t.get_device_index(),
                  ", x is on device ", x.get_device_index());
}

inline Pictures pictures(const Tensor& t, const Tensor& x, const char* name, int64_t grain = 1) {
  same_device(t, x, name);
  STD_TORCH_CHECK(t.dim() == 4 && x.dim() == 4, name, " and x must be [N, C, H, W]");
  STD_TORCH_CHECK(t.size(1) == x.size(1), name, " and x differ in shape");
  for (int d = 2; d < 4; ++d)
    STD_TORCH_CHECK(t.size(d) == (x.size(d) + grain - 1) / grain, name, " and x differ in shape");
  STD_TORCH_CHECK(t.size(1) == 1 || t.size(1) == 3, "pictures have 1 or 3 channels");
  const bool planar = t.numel() == 0 || dense(t, false);
  STD_TORCH_CHECK(planar || dense(t, true), name, " must be contiguous or channels_last");
  return {t.data_ptr(), type_of(t, name), !planar};
}

inline Pictures batch(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == x.size(0), name, " and x differ in batch size");
  return pictures(t, x, name);
}

inline Shape shape_of(const Tensor& x, const Pictures& bank) {
  return {x.size(1), x.size(2) * x.size(3), bank.interleaved};
}

// int64 [B], one for each picture.
inline const int64_t* numbers(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.dim() == 1 && t.is_contiguous(), name,
                  " must be int64 [B], contiguous");
  STD_TORCH_CHECK(t.size(0) == x.size(0), name, " and x differ in batch size");
  same_device(t, x, name);
  return t.const_data_ptr<int64_t>();
}

inline View view_of(const Tensor& x, const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad,
                    bool flip, int64_t grain) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [B, C, H, W]");
  STD_TORCH_CHECK(grain >= 1 && grain < (1 << 30), "grain must be at least 1");
  STD_TORCH_CHECK(x.size(2) < (1 << 30) && x.size(3) < (1 << 30) && x.size(2) * x.size(3) < (int64_t{1} << 31),
                  "a picture has too many pixels: ", x.size(2), " x ", x.size(3));
  STD_TORCH_CHECK(pad >= 0 && pad < (1 << 15), "pad must be between 0 and 32767");
  View view;
  view.height = static_cast<int32_t>(x.size(2));
  view.width = static_cast<int32_t>(x.size(3));
  view.grain = static_cast<int32_t>(grain);
  if (ids.has_value()) view.ids = numbers(*ids, x, "ids");
  view.seed = static_cast<uint64_t>(seed);
  view.epoch = epoch;
  view.pad = pad;
  view.flip = flip;
  return view;
}

// A bank of noise for pictures like x.
inline Pictures bank(const Tensor& noise, const Tensor& x, const View& view) {
  return pictures(noise, x, "noise", view.grain);
}

// Rows of a bank of `rows`, every one checked before anything is touched.
inline const int64_t* checked_rows(const Tensor& index, const Tensor& x, int64_t rows, const char* name) {
  const int64_t* p = numbers(index, x, name);
  for (int64_t i = 0; i < index.size(0); ++i)
    STD_TORCH_CHECK(p[i] >= 0 && p[i] < rows, name, " holds ", p[i], ", outside of [0, ", rows, ")");
  return p;
}

inline Normalisation normalisation(const std::vector<double>& mean, const std::vector<double>& std, int64_t channels) {
  Normalisation n;
  n.on = !mean.empty();
  STD_TORCH_CHECK(mean.size() == std.size() && (!n.on || static_cast<int64_t>(mean.size()) == channels),
                  "mean and std need one number for each channel");
  for (size_t c = 0; c < mean.size(); ++c) {
    n.mean[c] = static_cast<float>(mean[c]);
    n.inverse[c] = static_cast<float>(1.0 / std[c]);
  }
  return n;
}

// Run f(first tile, last tile) over `tiles` tiles on torch's threads, with enough work in each piece to pay for it.
template <class F>
void parallel_tiles(int64_t tiles, const F& f) {
  if (tiles > 0) torch::stable::parallel_for(0, tiles, (int64_t{1} << 15) / kTile, f);
}

}  // namespace fastue
