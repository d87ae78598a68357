// ghost_pair_backward: tensors to pointers, a launch for each side.
#include "../common/stable_cuda.h"
#include "../ghost_pair/checks.h"
#include "../ghost_pair/ghost_pair.h"
#include "ghost_pair_backward.h"

namespace fastue {
namespace {

std::tuple<Tensor, Tensor> ghost_pair_backward(const Tensor& grad, const Tensor& a, const Tensor& e, const Tensor& a2,
                                               const Tensor& e2) {
  const PairShape shape = check_pair(a, e, a2, e2);
  check_gradient(grad, a);
  STD_TORCH_CHECK(shape.batch < (int64_t{1} << 31) && tiles_of(shape.places) < 65536,
                  "too many samples or places for one launch: ", shape.batch, " and ", shape.places);
  const Tensor a_out = torch::stable::empty_like(a2), e_out = torch::stable::empty_like(e2);
  GhostPairBackward job{};
  job.grad = grad.const_data_ptr<double>();
  job.x = a.const_data_ptr<float>(), job.x2 = a2.const_data_ptr<float>();
  job.y = e.const_data_ptr<float>(), job.y2 = e2.const_data_ptr<float>();
  job.out = a_out.mutable_data_ptr<float>();
  job.batch = shape.batch, job.rows = shape.inputs, job.others = shape.outputs, job.places = shape.places;
  on_stream_of(a, [&](cudaStream_t stream) { return launch_ghost_pair_backward(job, stream); });
  std::swap(job.x, job.y), std::swap(job.x2, job.y2), std::swap(job.rows, job.others);
  job.out = e_out.mutable_data_ptr<float>();
  on_stream_of(a, [&](cudaStream_t stream) { return launch_ghost_pair_backward(job, stream); });
  return {a_out, e_out};
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) {
  m.impl("ghost_pair_backward", TORCH_BOX(&fastue::ghost_pair_backward));
}
