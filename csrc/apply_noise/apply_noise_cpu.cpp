// apply_noise on the CPU: one pass over the pictures, tile by tile. The definition is fastue/ops/apply_noise/reference.py.
#include "../common/stable.h"

namespace fastue {
namespace {

// Protected pixels of a tile of picture t.row, not yet normalised.
FASTUE_INLINE void protect(const Showing& job, const Tile& t, float* v) {
  alignas(64) uint8_t bytes[kTile];
  Tile source = t;
  source.row = job.index[t.row];
  const uint8_t* x = load_bytes(job.x, job.shape, t, bytes);
  if (job.noise.type == Type::s8)  // the working layout is the bank's
    return add_bytes(v, static_cast<const int8_t*>(job.noise.data) + job.shape.offset(source), job.scale, x, t.elements);
  const float* n = static_cast<const float*>(job.noise.data) + job.shape.offset(source);
  for (int64_t i = 0; i < t.elements; ++i) v[i] = clamp(pixel(x[i]) + n[i], 0.0f, 1.0f);
}

FASTUE_CLONES void apply_tiles(const Showing& job, int64_t begin, int64_t end) {
  alignas(64) float v[kTile];
  for (int64_t j = begin; j < end; ++j) {
    const Tile t = job.shape.tile(j / job.shape.tiles(), j % job.shape.tiles());
    protect(job, t, v);
    if (job.norm.on) normalise(v, job.norm, job.shape, t);
    store(v, job.out, job.shape, t, job.stream);
  }
  if (job.stream) fence();
}

void apply_noise(const Tensor& x, const Tensor& noise, const Tensor& index, const Tensor& out,
                 const std::vector<double>& mean, const std::vector<double>& std, double scale,
                 const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad, bool flip, int64_t grain) {
  Showing job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
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
  if (job.view.plain()) {
    parallel_tiles(x.size(0) * job.shape.tiles(), [&](int64_t begin, int64_t end) { apply_tiles(job, begin, end); });
    return;
  }
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) show(job, i);
  });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("apply_noise", TORCH_BOX(&fastue::apply_noise)); }
