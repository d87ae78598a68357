// count_correct on the CPU. Nobody needs the argmax: a row is right when no other logit comes before that of y. The
// definition is fastue/ops/count_correct/reference.py.
#include <atomic>

#include "checks.h"

namespace fastue {
namespace {

struct Job {
  const void* logits;
  Type type;
  const int64_t* y;
  int64_t classes;
};

template <class T>
FASTUE_INLINE int64_t count_as(const Job& job, int64_t begin, int64_t end) {
  int64_t right = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = job.y[i];
    if (k < 0 || k >= job.classes) continue;
    const T* row = static_cast<const T*>(job.logits) + i * job.classes;
    const float v = to_float(row[k]);
    int beaten = 0;  // by an earlier one that is not smaller, a later one that is greater; NaN tops all numbers
    if (v == v) {
      for (int64_t j = 0; j < k; ++j) beaten |= !(to_float(row[j]) < v);
      for (int64_t j = k + 1; j < job.classes; ++j) beaten |= !(to_float(row[j]) <= v);
    } else {
      for (int64_t j = 0; j < k; ++j) beaten |= to_float(row[j]) != to_float(row[j]);
    }
    right += !beaten;
  }
  return right;
}

FASTUE_CLONES int64_t count_rows(const Job& job, int64_t begin, int64_t end) {
  if (job.type == Type::f32) return count_as<float>(job, begin, end);
  if (job.type == Type::bf16) return count_as<bf16>(job, begin, end);
  return count_as<f16>(job, begin, end);
}

void count_correct(const Tensor& logits, const Tensor& y, const Tensor& counts, int64_t slot) {
  check_count(logits, y, counts, slot);
  const int64_t classes = logits.size(1);
  const Job job{logits.data_ptr(), type_of(logits, "logits"), y.const_data_ptr<int64_t>(), classes};
  std::atomic<int64_t> right{0};
  torch::stable::parallel_for(0, y.size(0), (int64_t{1} << 15) / (classes + 1) + 1, [&](int64_t begin, int64_t end) {
    right.fetch_add(count_rows(job, begin, end), std::memory_order_relaxed);
  });
  counts.mutable_data_ptr<int64_t>()[slot] += right.load();
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("count_correct", TORCH_BOX(&fastue::count_correct)); }
