// l2_step on the CPU: a thread owns a sample and goes over it three times, in cache: the gradient's norm, the step and
// its norm, the projection. The definition is fastue/ops/l2_step/reference.py.
#include "../common/stable.h"

#include <cmath>

namespace fastue {
namespace {

struct Job : Showing {  // out.data null: no next input
  Pictures grad;
  double step, eps;  // step < 0 descends
  bool stream;
};

// Sum of squares in float64, in 16 lanes: the order is fixed and the loop vectorises.
struct Squares {
  double lane[16] = {};
  FASTUE_INLINE void add(const float* v, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
      for (int j = 0; j < 16; ++j) lane[j] += static_cast<double>(v[i + j]) * static_cast<double>(v[i + j]);
    for (int j = 0; i < count; ++i, ++j) lane[j] += static_cast<double>(v[i]) * static_cast<double>(v[i]);
  }
  FASTUE_INLINE double root() const {
    double sum = 0;
    for (const double v : lane) sum += v;
    return std::sqrt(sum);
  }
};

FASTUE_CLONES void step_samples(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float grads[kTile], next[kTile];
  alignas(64) uint8_t bytes[kTile];
  for (int64_t i = begin; i < end; ++i) {
    Squares of_grad, of_noise;
    for (int64_t j = 0; j < job.shape.tiles(); ++j) {
      const Tile t = job.shape.tile(i, j);
      of_grad.add(load(job.grad, job.shape, t, grads), t.elements);
    }
    const double length = of_grad.root();
    const bool usable = length > 0 && std::isfinite(length);  // no direction, no move
    const float factor = usable ? static_cast<float>(job.step / length) : 0.0f;
    for (int64_t j = 0; j < job.shape.tiles(); ++j) {
      const Tile t = job.shape.tile(i, j);
      Tile target = t;
      target.row = job.index[i];
      float* __restrict n = static_cast<float*>(job.noise.data) + job.shape.offset(target);
      if (usable) {
        const float* __restrict g = load(job.grad, job.shape, t, grads);
        for (int64_t e = 0; e < t.elements; ++e) n[e] += g[e] * factor;
      }
      of_noise.add(n, t.elements);
    }
    const double reached = of_noise.root();
    const float shrink = reached > job.eps ? static_cast<float>(job.eps / reached) : 1.0f;
    for (int64_t j = 0; j < job.shape.tiles(); ++j) {
      const Tile t = job.shape.tile(i, j);
      Tile target = t;
      target.row = job.index[i];
      float* __restrict n = static_cast<float*>(job.noise.data) + job.shape.offset(target);
      const uint8_t* __restrict x = load_bytes(job.x, job.shape, t, bytes);
      for (int64_t e = 0; e < t.elements; ++e) {
        const float p = pixel(x[e]);
        n[e] = clamp(n[e] * shrink, -p, 1.0f - p);
      }
      if (job.out.data != nullptr) {
        for (int64_t e = 0; e < t.elements; ++e) next[e] = clamp(pixel(x[e]) + n[e], 0.0f, 1.0f);
        if (job.norm.on) normalise(next, job.norm, job.shape, t);
        store(next, job.out, job.shape, t, job.stream);
      }
    }
  }
  if (job.stream) fence();
}

// Any view: f is called with each value of the bank, the block that shows it and the block's mean gradient.
template <class G, class F>
FASTUE_INLINE void each_block(const Job& job, int64_t i, const F& f) {
  const int64_t channels = job.shape.channels, blocks = job.view.blocks();
  const CropFlip window = job.view.window(i);
  for (int64_t c = 0; c < channels; ++c) {
    const Plane<float> noise(job.noise, job.index[i], c, channels, blocks);
    const Plane<const G> grad(job.grad, i, c, channels, job.shape.area);
    for (int64_t b = 0; b < blocks; ++b) {
      const Block block = job.view.block(b);
      const float g = gradient_of(job.view, window, block, grad) / static_cast<float>(block.pixels());
      f(c, block, g, noise[b]);
    }
  }
}

template <class G>
FASTUE_INLINE void step_blocks(const Job& job, int64_t i) {
  const auto square = [](const Block& block, float v) {
    return static_cast<double>(v) * static_cast<double>(v) * static_cast<double>(block.pixels());
  };
  double of_grad = 0, of_noise = 0;
  each_block<G>(job, i, [&](int64_t, const Block& block, float g, float) { of_grad += square(block, g); });
  const double length = std::sqrt(of_grad);
  const bool usable = length > 0 && std::isfinite(length);  // no direction, no move
  const float factor = usable ? static_cast<float>(job.step / length) : 0.0f;
  each_block<G>(job, i, [&](int64_t, const Block& block, float g, float& n) {
    if (usable) n += g * factor;
    of_noise += square(block, n);
  });
  const double reached = std::sqrt(of_noise);
  const float shrink = reached > job.eps ? static_cast<float>(job.eps / reached) : 1.0f;
  each_block<G>(job, i, [&](int64_t c, const Block& block, float, float& n) {
    const Plane<const uint8_t> x(job.x, i, c, job.shape.channels, job.shape.area);
    const Room room = room_of(job.view, block, x);
    n = clamp(n * shrink, -room.darker, room.brighter);
  });
  if (job.out.data != nullptr) show(job, i);
}

FASTUE_CLONES void step_viewed(const Job& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    as_float(job.grad.type, [&](auto grad) { step_blocks<decltype(grad)>(job, i); });
}

void l2_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& index, double step, double eps,
             bool ascend, const std::optional<Tensor>& out, const std::vector<double>& mean,
             const std::vector<double>& std, const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad,
             bool flip, int64_t grain) {
  Job job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
  job.scale = 1.0f;
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && job.noise.type == Type::f32 && job.grad.type != Type::u8 &&
                      job.grad.type != Type::s8,
                  "x must be uint8, noise float32, grad float32, bfloat16 or float16");
  job.shape = shape_of(x, job.noise);
  job.index = checked_rows(index, x, noise.size(0), "index");
  job.step = ascend ? step : -step;
  job.eps = eps;
  if (out.has_value()) {
    job.out = batch(*out, x, "out");
    STD_TORCH_CHECK(job.out.type != Type::u8 && job.out.type != Type::s8, "out must be float32, bfloat16 or float16");
    job.norm = normalisation(mean, std, x.size(1));
    job.stream = out->numel() * static_cast<int64_t>(job.out.type == Type::f32 ? 4 : 2) >= kStreamBytes;
  }
  if (x.numel() == 0) return;
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    job.view.plain() ? step_samples(job, begin, end) : step_viewed(job, begin, end);
  });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("l2_step", TORCH_BOX(&fastue::l2_step)); }
