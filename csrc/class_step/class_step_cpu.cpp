// class_step on the CPU: a thread owns a tile of a class and walks that class's samples in batch order, so the sum has
// the same bits for any number of threads. The definition is fastue/ops/class_step/reference.py.
#include "../common/stable.h"

namespace fastue {
namespace {

struct Job : Showing {  // no next input
  Pictures grad;
  std::vector<int64_t> classes;  // those present
  std::vector<int64_t> start;    // samples of classes[j]: samples[start[j] .. start[j + 1])
  std::vector<int64_t> samples;  // in batch order within a class
  float step, eps;
};

FASTUE_CLONES void step_classes(const Job& job, int64_t begin, int64_t end) {
  alignas(64) float grads[kTile], total[kTile];
  alignas(64) uint8_t bytes[kTile];
  const float step = job.step, eps = job.eps;
  for (int64_t j = begin; j < end; ++j) {
    const int64_t k = j / job.shape.tiles();
    Tile t = job.shape.tile(job.classes[k], j % job.shape.tiles());
    float* n = static_cast<float*>(job.noise.data) + job.shape.offset(t);
    std::fill(total, total + t.elements, 0.0f);
    for (int64_t s = job.start[k]; s < job.start[k + 1]; ++s) {
      t.row = job.samples[s];
      const float* g = load(job.grad, job.shape, t, grads);
      const uint8_t* x = load_bytes(job.x, job.shape, t, bytes);
      for (int64_t i = 0; i < t.elements; ++i) {
        const float p = pixel(x[i]);
        total[i] += clamp(clamp(p + n[i], 0.0f, 1.0f) - moved(g[i], step) - p, -eps, eps);
      }
    }
    const float count = static_cast<float>(job.start[k + 1] - job.start[k]);
    for (int64_t i = 0; i < t.elements; ++i) n[i] = clamp(total[i] / count, -eps, eps);
  }
}

// Any view: line r of class j's blocks.
FASTUE_INLINE void step_line(const Job& job, int64_t j, int64_t r) {
  alignas(64) float grads[kTile], moves[kTile], shown[kTile];
  alignas(64) uint8_t bytes[kTile];
  const View& view = job.view;
  const int64_t grain = view.grain, per = job.per(), values = view.columns() * per;
  const int64_t top = r * grain, bottom = std::min<int64_t>(top + grain, view.height);
  const float eps = job.eps;
  std::vector<float> total(values), sum(values), move(values);
  for (int64_t c = 0; c < job.planes(); ++c) {
    float* noise = static_cast<float*>(job.noise.data) + job.blocks_at(j, c, r);
    std::fill(total.begin(), total.end(), 0.0f);
    for (int64_t s = job.start[j]; s < job.start[j + 1]; ++s) {
      const int64_t i = job.samples[s];
      const CropFlip window = view.window(i);
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t y = top; y < bottom; ++y)
        each_part(job.shape, view, i, c, y, [&](const Tile& t, int64_t first, int64_t last) {
          add_to_blocks(sum.data(), load_back(job.grad, job.shape, view, window, t, y, grads), first, last, per, grain);
        });
      for (int64_t k = 0; k < values; ++k) move[k] = moved(sum[k], job.step);
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t y = top; y < bottom; ++y)
        each_part(job.shape, view, i, c, y, [&](const Tile& t, int64_t first, int64_t last) {
          const uint8_t* x = load_bytes(job.x, job.shape, t, bytes);
          show_blocks(shown, noise, first, last, per, grain);
          show_blocks(moves, move.data(), first, last, per, grain);
          for (int64_t e = 0; e < t.elements; ++e) {
            const float p = pixel(x[e]);
            grads[e] = clamp(clamp(p + shown[e], 0.0f, 1.0f) - moves[e] - p, -eps, eps);
          }
          add_to_blocks(sum.data(), grads, first, last, per, grain);
        });
      for (int64_t k = 0; k < values; ++k) total[k] += sum[k];
    }
    const int64_t samples = job.start[j + 1] - job.start[j];
    for (int64_t k = 0; k < values; ++k) {
      const int64_t b = r * view.columns() + k / per;
      const float count = static_cast<float>(samples * view.block(static_cast<int32_t>(b)).pixels());
      noise[k] = clamp(total[k] / count, -eps, eps);
    }
  }
}

FASTUE_CLONES void step_viewed(const Job& job, int64_t begin, int64_t end) {
  const int64_t lines = job.view.blocks() / job.view.columns();
  for (int64_t j = begin; j < end; ++j) step_line(job, j / lines, j % lines);
}

void class_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& y, double step, double eps,
                bool ascend, const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad, bool flip,
                int64_t grain) {
  Job job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && job.noise.type == Type::f32 && job.grad.type != Type::u8 &&
                      job.grad.type != Type::s8,
                  "x must be uint8, noise float32, grad float32, bfloat16 or float16");
  job.shape = shape_of(x, job.noise);
  const int64_t* classes = checked_rows(y, x, noise.size(0), "y");
  job.step = static_cast<float>(ascend ? -step : step);
  job.eps = static_cast<float>(eps);
  if (x.numel() == 0) return;
  job.samples.resize(x.size(0));
  for (int64_t i = 0; i < x.size(0); ++i) job.samples[i] = i;
  std::stable_sort(job.samples.begin(), job.samples.end(),
                   [&](int64_t a, int64_t b) { return classes[a] < classes[b]; });
  for (int64_t s = 0; s < x.size(0); ++s) {
    const int64_t k = classes[job.samples[s]];
    if (job.classes.empty() || job.classes.back() != k) {
      job.classes.push_back(k);
      job.start.push_back(s);
    }
  }
  job.start.push_back(x.size(0));
  job.index = job.classes.data();
  const int64_t present = static_cast<int64_t>(job.classes.size());
  if (!job.view.plain()) {
    const int64_t lines = job.view.blocks() / job.view.columns();
    torch::stable::parallel_for(0, present * lines, 1, [&](int64_t begin, int64_t end) { step_viewed(job, begin, end); });
    return;
  }
  const int64_t tiles = present * job.shape.tiles();
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) { step_classes(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("class_step", TORCH_BOX(&fastue::class_step)); }
