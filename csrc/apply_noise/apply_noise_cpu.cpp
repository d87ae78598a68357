// apply_noise on the CPU: one pass over the pictures, tile by tile. The definition is fastue/ops/apply_noise/reference.py.
#include "../common/philox.h"
#include "../common/stable.h"

namespace fastue {
namespace {

struct Job {
  Pictures x, noise, out;
  Shape shape;
  const int64_t* index;
  float scale;
  Normalisation norm;
  bool stream;
  const int64_t* ids;  // null: no crop and flip
  uint64_t seed;
  int64_t epoch, pad, height, width;
  bool flip;
};

// Protected pixels of a tile of picture t.row, not yet normalised.
FASTUE_INLINE void protect(const Job& job, const Tile& t, float* v) {
  alignas(64) uint8_t bytes[kTile];
  Tile source = t;
  source.row = job.index[t.row];
  const uint8_t* x = load_bytes(job.x, job.shape, t, bytes);
  if (job.noise.type == Type::s8)  // the working layout is the bank's
    return add_bytes(v, static_cast<const int8_t*>(job.noise.data) + job.shape.offset(source), job.scale, x, t.elements);
  const float* n = static_cast<const float*>(job.noise.data) + job.shape.offset(source);
  for (int64_t i = 0; i < t.elements; ++i) v[i] = clamp(pixel(x[i]) + n[i], 0.0f, 1.0f);
}

FASTUE_CLONES void apply_tiles(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float v[kTile];
  for (int64_t j = begin; j < end; ++j) {
    const Tile t = job.shape.tile(j / job.shape.tiles(), j % job.shape.tiles());
    protect(job, t, v);
    if (job.norm.on) normalise(v, job.norm, job.shape, t);
    store(v, job.out, job.shape, t, job.stream);
  }
  if (job.stream) fence();
}

// A piece of output row y under crop and flip: black where the source is outside of the picture, mirrored on request.
FASTUE_INLINE void crop_piece(const Job& job, const Tile& t, const CropFlip& crop, int64_t y, int64_t left, float* v) {
  const int64_t per = job.shape.interleaved ? job.shape.channels : 1;
  std::fill(v, v + t.elements, 0.0f);
  const int64_t source_y = y + crop.down;
  if (source_y >= 0 && source_y < job.height) {
    // Output column q shows picture column (mirrored ? width - 1 - q : q) + right; this piece is q in [left, left + n).
    const int64_t from = (crop.mirrored ? job.width - left - t.pixels : left) + crop.right;
    const int64_t first = std::max<int64_t>(from, 0), last = std::min(from + t.pixels, job.width);
    if (first < last) {
      alignas(64) float seen[kTile];
      protect(job, job.shape.part(t.row, t.channel, source_y * job.width + first, last - first), seen);
      for (int64_t p = first; p < last; ++p) {
        const int64_t q = crop.mirrored ? t.pixels - 1 - (p - from) : p - from;
        for (int64_t c = 0; c < per; ++c) v[q * per + c] = seen[(p - first) * per + c];
      }
    }
  }
}

FASTUE_CLONES void apply_cropped(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float v[kTile];
  const int64_t planes = job.shape.interleaved ? 1 : job.shape.channels;
  // Several whole rows at a time, or a part of a row that is too wide for a tile.
  const int64_t wide = std::min(job.width, job.shape.tile_pixels());
  const int64_t lines = wide < job.width ? 1 : job.shape.tile_pixels() / job.width;
  for (int64_t i = begin; i < end; ++i) {
    const CropFlip crop = crop_flip(job.ids[i], job.seed, job.epoch, job.pad, job.flip);
    for (int64_t c = 0; c < planes; ++c)
      for (int64_t y = 0; y < job.height; y += lines)
        for (int64_t left = 0; left < job.width; left += wide) {
          const int64_t pixels = std::min(wide, job.width - left), last = std::min(y + lines, job.height);
          for (int64_t line = y; line < last; ++line) {
            const Tile piece = job.shape.part(i, c, line * job.width + left, pixels);
            crop_piece(job, piece, crop, line, left, v + (line - y) * piece.elements);
          }
          const Tile t = job.shape.part(i, c, y * job.width + left, pixels * (last - y));
          if (job.norm.on) normalise(v, job.norm, job.shape, t);
          store(v, job.out, job.shape, t, false);
        }
  }
}

void apply_noise(const Tensor& x, const Tensor& noise, const Tensor& index, const Tensor& out,
                 const std::vector<double>& mean, const std::vector<double>& std, double scale,
                 const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad, bool flip) {
  Job job{};
  job.x = batch(x, x, "x");
  job.noise = pictures(noise, x, "noise");
  job.out = batch(out, x, "out");
  STD_TORCH_CHECK(job.x.type == Type::u8 && (job.noise.type == Type::f32 || job.noise.type == Type::s8) &&
                      job.out.type != Type::u8 && job.out.type != Type::s8,
                  "x must be uint8, noise float32 or int8, out float32, bfloat16 or float16");
  job.shape = shape_of(x, job.noise);
  job.index = checked_rows(index, x, noise.size(0), "index");
  job.scale = static_cast<float>(scale);
  job.norm = normalisation(mean, std, x.size(1));
  job.stream = out.numel() * static_cast<int64_t>(job.out.type == Type::f32 ? 4 : 2) >= kStreamBytes;
  if (x.numel() == 0) return;
  if (!ids.has_value()) {
    parallel_tiles(x.size(0) * job.shape.tiles(), [&](int64_t begin, int64_t end) { apply_tiles(job, begin, end); });
    return;
  }
  job.ids = numbers(*ids, x, "ids");
  job.seed = static_cast<uint64_t>(seed);
  job.epoch = epoch;
  STD_TORCH_CHECK(pad >= 0 && pad < (1 << 15), "pad must be between 0 and 32767");
  job.pad = pad;
  job.flip = flip;
  job.height = x.size(2);
  job.width = x.size(3);
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) { apply_cropped(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("apply_noise", TORCH_BOX(&fastue::apply_noise)); }
