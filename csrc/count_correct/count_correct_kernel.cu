// count_correct on CUDA: a warp looks whether any logit of its row comes before that of y; a block adds once. Whole
// numbers, so the order of the additions does not matter. The definition is fastue/ops/count_correct/reference.py.
#include "count_correct.h"

namespace fastue {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) count_correct_kernel(const __grid_constant__ CountCorrect job) {
  const int64_t i = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  const int64_t lane = threadIdx.x % 32;
  bool right = false;
  const int64_t k = i < job.batch ? job.y[i] : -1;  // the same in all lanes of a warp
  if (k >= 0 && k < job.classes) {
    const T* row = static_cast<const T*>(job.logits.data) + i * job.classes;
    const float v = to_float(row[k]);
    bool beaten = false;  // by an earlier one that is not smaller, by a later one that is greater; NaN tops all numbers
    for (int64_t j = lane; j < job.classes; j += 32) {
      const float other = to_float(row[j]);
      beaten |= other > v || (j < k && other == v) || (other != other && (j < k || v == v));
    }
    right = !__any_sync(0xFFFFFFFFu, beaten) && lane == 0;
  }
  const int count = __syncthreads_count(right);
  if (threadIdx.x == 0 && count > 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(job.count), static_cast<unsigned long long>(count));
}

}  // namespace

cudaError_t launch_count_correct(const CountCorrect& job, cudaStream_t stream) {
  if (job.batch == 0 || job.classes == 0) return cudaSuccess;
  return by_float(job.logits.type, [&](auto logits) {
    const unsigned blocks = static_cast<unsigned>((job.batch + kRows - 1) / kRows);
    count_correct_kernel<decltype(logits)><<<blocks, kThreads, 0, stream>>>(job);
    return cudaGetLastError();
  });
}

}  // namespace fastue
