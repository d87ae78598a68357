// grad_cosine: tensors to pointers.
#include "../common/lists_stable.h"
#include "grad_cosine.h"

namespace fastue {
namespace {

Tensor grad_cosine(const std::vector<Tensor>& g, const std::vector<Tensor>& h) {
  STD_TORCH_CHECK(!g.empty(), "g is an empty list");
  const Lists lists(g, h, {});
  const std::vector<Tensors> launches = launches_of(lists);
  int64_t pieces = 0;
  for (const Tensors& list : launches) pieces += list.pieces;
  STD_TORCH_CHECK(pieces < (int64_t{1} << 31), "the lists have too many elements");
  if (pieces == 0) return torch::stable::new_zeros(g[0], {3}, ScalarType::Double);
  const Tensor out = torch::stable::new_empty(g[0], {3}, ScalarType::Double);
  const Tensor scratch = torch::stable::new_empty(g[0], {3 * pieces + 1}, ScalarType::Double);
  GradCosine job{};
  job.sums = reinterpret_cast<Triple*>(scratch.mutable_data_ptr<double>());
  job.done = reinterpret_cast<unsigned*>(scratch.mutable_data_ptr<double>() + 3 * pieces);
  job.pieces = static_cast<uint32_t>(pieces);
  job.out = out.mutable_data_ptr<double>();
  on_stream_of(g[0], [&](cudaStream_t stream) {
    cudaError_t error = cudaMemsetAsync(job.done, 0, sizeof(*job.done), stream);
    for (const Tensors& list : launches) {
      job.list = list;
      if (error == cudaSuccess) error = launch_grad_cosine(job, stream);
      job.before += list.pieces;
    }
    return error;
  });
  return out;
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("grad_cosine", TORCH_BOX(&fastue::grad_cosine)); }
