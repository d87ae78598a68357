// weight_noise: tensors to pointers. Draws and blocks out of range wrap around: looking here would stop the device.
#include "../common/stable_cuda.h"
#include "checks.h"
#include "weight_noise.h"

namespace fastue {
namespace {

void weight_noise(const Tensor& base, const Tensor& table, const Tensor& draws, const Tensor& out, double sigma,
                  int64_t seed, int64_t purpose) {
  WeightNoise job{};
  job.size = check_weights(base, table, draws, out);
  job.count = draws.size(0);
  job.base = base.const_data_ptr<float>();
  job.table = table.const_data_ptr<int64_t>();
  job.draws = draws.const_data_ptr<int64_t>();
  job.out = {out.data_ptr(), type_of(out, "out"), false};
  job.sigma = static_cast<float>(sigma);
  job.seed = static_cast<uint64_t>(seed);
  job.purpose = static_cast<uint32_t>(purpose);
  STD_TORCH_CHECK(job.count < (1 << 16), "too many draws for one launch: ", job.count, ", at most 65535");
  on_stream_of(base, [&](cudaStream_t stream) { return launch_weight_noise(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("weight_noise", TORCH_BOX(&fastue::weight_noise)); }
