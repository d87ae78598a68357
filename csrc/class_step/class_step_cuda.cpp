// class_step: tensors to pointers. A label out of range belongs to no class and is skipped.
#include "../common/stable_cuda.h"
#include "class_step.h"

namespace fastue {
namespace {

void class_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& y, double step, double eps,
                bool ascend) {
  ClassStep job{};
  job.x = batch(x, x, "x");
  job.noise = pictures(noise, x, "noise");
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && job.noise.type == Type::f32 && job.grad.type != Type::u8 &&
                      job.grad.type != Type::s8,
                  "x must be uint8, noise float32, grad float32, bfloat16 or float16");
  job.layout = layout_of(x, job.noise);
  job.y = numbers(y, x, "y");
  job.batch = x.size(0);
  job.classes = noise.size(0);
  job.step = static_cast<float>(ascend ? -step : step);
  job.eps = static_cast<float>(eps);
  job.grad_crossed = crossed(job.grad, job.layout);
  job.x_crossed = crossed(job.x, job.layout);
  check_grid(job.classes, job.layout);
  on_stream_of(x, [&](cudaStream_t stream) { return launch_class_step(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("class_step", TORCH_BOX(&fastue::class_step)); }
