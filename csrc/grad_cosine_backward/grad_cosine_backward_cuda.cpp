// grad_cosine_backward: tensors to pointers. The weights stay on the device.
#include "../common/lists_stable.h"
#include "grad_cosine_backward.h"

namespace fastue {
namespace {

void grad_cosine_backward(const std::vector<Tensor>& g, const std::vector<Tensor>& h, const Tensor& grad,
                          const std::vector<Tensor>& out, bool targets) {
  STD_TORCH_CHECK(out.size() == g.size(), g.size(), " tensors in g, ", out.size(), " in out");
  GradCosineBackward job{};
  job.grad = checked_grad(grad);
  job.targets = targets;
  if (!g.empty()) same_device(grad, g[0], "grad");
  for (const Tensors& list : launches_of(Lists(g, h, out))) {
    job.list = list;
    on_stream_of(grad, [&](cudaStream_t stream) { return launch_grad_cosine_backward(job, stream); });
  }
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) {
  m.impl("grad_cosine_backward", TORCH_BOX(&fastue::grad_cosine_backward));
}
