// diffusion_step: tensors to pointers.
#include "../common/stable_cuda.h"
#include "checks.h"

namespace fastue {

cudaError_t launch_diffusion_step(const DiffusionStep& job, cudaStream_t stream);

namespace {

void diffusion_step(const Tensor& x, const std::optional<Tensor>& eps, const std::optional<Tensor>& y,
                    const std::optional<Tensor>& grad, const Tensor& ids, double alpha_bar, double c0, double cx,
                    double pull, bool noisy, double push, double sigma, int64_t seed, int64_t iteration, int64_t t) {
  DiffusionStep job = diffusion_step_of(x, eps, y, grad, ids, alpha_bar, c0, cx, pull, noisy, push, sigma, seed,
                                        iteration, t);
  job.area = area_of(x, job.batch);
  on_stream_of(x, [&](cudaStream_t stream) { return launch_diffusion_step(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("diffusion_step", TORCH_BOX(&fastue::diffusion_step)); }
