// class_step: tensors to pointers. A label out of range belongs to no class and is skipped.
#include "../common/stable_cuda.h"
#include "class_step.h"

namespace fastue {
namespace {

void class_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& y, double step, double eps,
                bool ascend, const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad, bool flip,
                int64_t grain) {
  ClassStep job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && job.noise.type == Type::f32 && job.grad.type != Type::u8 &&
                      job.grad.type != Type::s8,
                  "x must be uint8, noise float32, grad float32, bfloat16 or float16");
  job.channels = static_cast<uint32_t>(x.size(1));
  job.area = area_of(x, noise.size(0));
  job.y = numbers(y, x, "y");
  job.batch = x.size(0);
  job.classes = noise.size(0);
  job.step = static_cast<float>(ascend ? -step : step);
  job.eps = static_cast<float>(eps);
  const Tensor order = torch::stable::empty_like(y), bounds = torch::stable::new_empty(y, {2 * job.classes});
  job.order = order.mutable_data_ptr<int64_t>();
  job.bounds = bounds.mutable_data_ptr<int64_t>();
  on_stream_of(x, [&](cudaStream_t stream) { return launch_class_step(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("class_step", TORCH_BOX(&fastue::class_step)); }
