// l2_step: tensors to pointers. Rows out of range are skipped in the kernel: looking here would stop the device.
#include "../common/stable_cuda.h"
#include "l2_step.h"

namespace fastue {
namespace {

void l2_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& index, double step, double eps,
             bool ascend, const std::optional<Tensor>& out, const std::vector<double>& mean,
             const std::vector<double>& std, const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad,
             bool flip, int64_t grain) {
  L2Step job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && job.noise.type == Type::f32 && job.grad.type != Type::u8 &&
                      job.grad.type != Type::s8,
                  "x must be uint8, noise float32, grad float32, bfloat16 or float16");
  job.channels = static_cast<uint32_t>(x.size(1));
  job.area = area_of(x, x.size(0));
  job.index = numbers(index, x, "index");
  job.batch = x.size(0);
  job.rows = noise.size(0);
  job.step = ascend ? step : -step;
  job.eps = eps;
  if (out.has_value()) {
    job.out = batch(*out, x, "out");
    STD_TORCH_CHECK(job.out.type != Type::u8 && job.out.type != Type::s8, "out must be float32, bfloat16 or float16");
    job.norm = normalisation(mean, std, x.size(1));
  }
  const int64_t pieces = pieces_of(job);
  const Tensor sums = torch::stable::new_empty(index, {pieces > 1 ? 2 * job.batch * pieces : 0}, ScalarType::Double);
  job.sums = pieces > 1 ? sums.mutable_data_ptr<double>() : nullptr;
  on_stream_of(x, [&](cudaStream_t stream) { return launch_l2_step(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("l2_step", TORCH_BOX(&fastue::l2_step)); }
