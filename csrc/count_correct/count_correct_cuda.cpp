// count_correct: tensors to pointers. The count stays on the device.
#include "../common/stable_cuda.h"
#include "checks.h"
#include "count_correct.h"

namespace fastue {
namespace {

void count_correct(const Tensor& logits, const Tensor& y, const Tensor& counts, int64_t slot) {
  check_count(logits, y, counts, slot);
  CountCorrect job{};
  job.logits = {logits.data_ptr(), type_of(logits, "logits"), false};
  job.y = y.const_data_ptr<int64_t>();
  job.count = counts.mutable_data_ptr<int64_t>() + slot;
  job.batch = logits.size(0);
  job.classes = logits.size(1);
  STD_TORCH_CHECK((job.batch + kRows - 1) / kRows < (int64_t{1} << 31), "the batch is too large for one launch");
  on_stream_of(logits, [&](cudaStream_t stream) { return launch_count_correct(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("count_correct", TORCH_BOX(&fastue::count_correct)); }
