// ghost_pair: tensors to pointers.
#include "../common/stable_cuda.h"
#include "checks.h"
#include "ghost_pair.h"

namespace fastue {
namespace {

Tensor ghost_pair(const Tensor& a, const Tensor& e, const Tensor& a2, const Tensor& e2) {
  const PairShape shape = check_pair(a, e, a2, e2);
  const int64_t pieces = pieces_of(shape.places);
  STD_TORCH_CHECK(shape.batch < (int64_t{1} << 31) / 3 && pieces < 65536, "too many samples or places for one launch: ",
                  shape.batch, " and ", shape.places);
  const Tensor out = torch::stable::new_empty(a, {shape.batch, 3}, ScalarType::Double);
  const Tensor sums =
      torch::stable::new_empty(a, {shape.batch, shape.places > 1 ? pieces : 0, 3}, ScalarType::Double);
  GhostPair job{};
  job.a = a.const_data_ptr<float>(), job.e = e.const_data_ptr<float>();
  job.a2 = a2.const_data_ptr<float>(), job.e2 = e2.const_data_ptr<float>();
  job.sums = sums.mutable_data_ptr<double>(), job.out = out.mutable_data_ptr<double>();
  job.batch = shape.batch, job.inputs = shape.inputs, job.outputs = shape.outputs, job.places = shape.places;
  on_stream_of(a, [&](cudaStream_t stream) { return launch_ghost_pair(job, stream); });
  return out;
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("ghost_pair", TORCH_BOX(&fastue::ghost_pair)); }
