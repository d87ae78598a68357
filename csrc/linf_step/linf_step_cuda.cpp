// linf_step: tensors to pointers. Rows out of range are skipped in the kernel: looking here would stop the device.
#include "../common/stable_cuda.h"
#include "linf_step.h"

namespace fastue {
namespace {

void linf_step(const Tensor& noise, const Tensor& grad, const Tensor& x, const Tensor& index, double step, double eps,
               bool ascend, double scale, const std::optional<Tensor>& mask, const std::optional<Tensor>& out,
               const std::vector<double>& mean, const std::vector<double>& std, const std::optional<Tensor>& ids,
               int64_t seed, int64_t epoch, int64_t pad, bool flip, int64_t grain) {
  LinfStep job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
  job.grad = batch(grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::u8 && (job.noise.type == Type::f32 || job.noise.type == Type::s8) &&
                      job.grad.type != Type::u8 && job.grad.type != Type::s8,
                  "x must be uint8, noise float32 or int8, grad float32, bfloat16 or float16");
  job.channels = static_cast<uint32_t>(x.size(1));
  job.area = area_of(x, x.size(0));
  job.index = numbers(index, x, "index");
  job.batch = x.size(0);
  job.rows = noise.size(0);
  job.step = static_cast<float>(ascend ? -step : step);
  job.eps = static_cast<float>(eps);
  job.scale = static_cast<float>(scale);
  job.inverse = static_cast<float>(1.0 / scale);
  if (mask.has_value()) {
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && mask->is_contiguous() && mask->dim() == 4 &&
                        (mask->size(0) == 1 || mask->size(0) == x.size(0)) && mask->size(1) == 1 &&
                        mask->size(2) == noise.size(2) && mask->size(3) == noise.size(3),
                    "mask must be bool [B or 1, 1, h, w], contiguous, of the bank's size");
    same_device(*mask, x, "mask");
    job.mask = static_cast<const bool*>(mask->const_data_ptr());
    job.mask_shared = mask->size(0) == 1;
  }
  if (out.has_value()) {
    job.out = batch(*out, x, "out");
    STD_TORCH_CHECK(job.out.type != Type::u8 && job.out.type != Type::s8, "out must be float32, bfloat16 or float16");
    job.norm = normalisation(mean, std, x.size(1));
  }
  on_stream_of(x, [&](cudaStream_t stream) { return launch_linf_step(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("linf_step", TORCH_BOX(&fastue::linf_step)); }
