// linf_step on the CPU: one pass, in place. The definition is fastue/ops/linf_step/reference.py.
#include "../common/stable.h"

namespace fastue {
namespace {

struct Job {
  Pictures noise, grad, x, out;  // out.data null: no next input
  Shape shape;
  const int64_t* index;
  float step, eps, scale, inverse;  // step < 0 ascends; inverse = 1/scale
  const bool* mask;        // null: none; [1 or B, 1, H, W]
  bool mask_shared;
  Normalisation norm;
  bool stream;
};

// What is 0 outside of the mask: one value a pixel.
FASTUE_INLINE void erase(const Job& job, const Tile& t, float* n) {
  const bool* mask = job.mask + (job.mask_shared ? 0 : t.row * job.shape.area) + t.first;
  const int64_t per = t.elements / t.pixels;
  for (int64_t p = 0; p < t.pixels; ++p)
    for (int64_t c = 0; c < per; ++c) n[p * per + c] = mask[p] ? n[p * per + c] : 0.0f;
}

// The int8 state as noise, and back: what was stored is what the next input shows. __restrict: int8_t may alias anything.
FASTUE_INLINE void expand(const int8_t* __restrict stored, float* __restrict n, int64_t count, float scale) {
  for (int64_t i = 0; i < count; ++i) n[i] = static_cast<float>(stored[i]) * scale;
}

FASTUE_INLINE void round_to(int8_t* __restrict stored, float* __restrict n, int64_t count, float scale,
                            float inverse) {
  for (int64_t i = 0; i < count; ++i) {
    const float q = nearest(clamp(n[i] * inverse, -127.0f, 127.0f));
    stored[i] = static_cast<int8_t>(static_cast<int32_t>(q));  // through int32: that vectorises
    n[i] = q * scale;
  }
}

FASTUE_INLINE void step_and_project(float* __restrict n, const float* __restrict g, const uint8_t* __restrict x,
                                    int64_t count, float step, float eps) {
  for (int64_t i = 0; i < count; ++i) {
    const float p = pixel(x[i]);
    n[i] = clamp(clamp(n[i] - moved(g[i], step), -eps, eps), -p, 1.0f - p);
  }
}

FASTUE_INLINE void add(float* __restrict v, const float* __restrict n, const uint8_t* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) v[i] = clamp(pixel(x[i]) + n[i], 0.0f, 1.0f);
}

FASTUE_CLONES void step_tiles(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float grads[kTile], rows[kTile], next[kTile];
  alignas(64) uint8_t bytes[kTile];
  for (int64_t j = begin; j < end; ++j) {
    const Tile t = job.shape.tile(j / job.shape.tiles(), j % job.shape.tiles());
    const float* g = load(job.grad, job.shape, t, grads);
    const uint8_t* x = load_bytes(job.x, job.shape, t, bytes);
    Tile target = t;
    target.row = job.index[t.row];
    const int64_t at = job.shape.offset(target);
    const bool compact = job.noise.type == Type::s8;
    int8_t* stored = static_cast<int8_t*>(job.noise.data) + at;
    float* n = compact ? rows : static_cast<float*>(job.noise.data) + at;
    if (compact) expand(stored, n, t.elements, job.scale);
    step_and_project(n, g, x, t.elements, job.step, job.eps);
    if (job.mask != nullptr) erase(job, t, n);
    if (compact) round_to(stored, n, t.elements, job.scale, job.inverse);
    if (job.out.data != nullptr) {
      add(next, n, x, t.elements);
      if (job.norm.on) normalise(next, job.norm, job.shape, t);
      store(next, job.out, job.shape, t, job.stream);
    }
  }
  if (job.stream) fence();
}

void linf_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& index, double step, double eps,
               bool ascend, double scale, const std::optional<Tensor>& mask, const std::optional<Tensor>& out,
               const std::vector<double>& mean, const std::vector<double>& std) {
  Job job{};
  job.x = batch(x, x, "x");
  job.noise = pictures(noise, x, "noise");
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && (job.noise.type == Type::f32 || job.noise.type == Type::s8) &&
                      job.grad.type != Type::u8 && job.grad.type != Type::s8,
                  "x must be uint8, noise float32 or int8, grad float32, bfloat16 or float16");
  job.shape = shape_of(x, job.noise);
  job.index = checked_rows(index, x, noise.size(0), "index");
  job.step = static_cast<float>(ascend ? -step : step);
  job.eps = static_cast<float>(eps);
  job.scale = static_cast<float>(scale);
  job.inverse = static_cast<float>(1.0 / scale);
  if (mask.has_value()) {
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && mask->is_contiguous() && mask->dim() == 4 &&
                        (mask->size(0) == 1 || mask->size(0) == x.size(0)) && mask->size(1) == 1 &&
                        mask->size(2) == x.size(2) && mask->size(3) == x.size(3),
                    "mask must be bool [B or 1, 1, H, W], contiguous");
    job.mask = static_cast<const bool*>(mask->const_data_ptr());
    job.mask_shared = mask->size(0) == 1;
  }
  if (out.has_value()) {
    job.out = batch(*out, x, "out");
    STD_TORCH_CHECK(job.out.type != Type::u8 && job.out.type != Type::s8, "out must be float32, bfloat16 or float16");
    job.norm = normalisation(mean, std, x.size(1));
    job.stream = out->numel() * static_cast<int64_t>(job.out.type == Type::f32 ? 4 : 2) >= kStreamBytes;
  }
  if (x.numel() == 0) return;
  parallel_tiles(x.size(0) * job.shape.tiles(), [&](int64_t begin, int64_t end) { step_tiles(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("linf_step", TORCH_BOX(&fastue::linf_step)); }
