// class_step on CUDA: a block owns a piece of one class and walks the batch in order, so the sum has the same bits every
// time and needs no atomics. The definition is fastue/ops/class_step/reference.py.
#include "class_step.h"

namespace fastue {
namespace {

template <bool VECTOR>
__global__ void __launch_bounds__(kThreads, 4) class_step_kernel(const __grid_constant__ ClassStep job, int64_t blocks) {
  __shared__ int64_t labels[kThreads];
  const int64_t k = blockIdx.x / blocks;
  const uint32_t e = (static_cast<uint32_t>(blockIdx.x % blocks) * kThreads + threadIdx.x) * kVec;
  const bool inside = e < job.layout.size;  // those outside still help to load labels
  float n[kVec], g[kVec], x[kVec], total[kVec];
  for (int j = 0; j < kVec; ++j) total[j] = 0.0f;
  if (inside) read<VECTOR>(job.noise, job.layout, k, e, false, n);
  int64_t count = 0;
  for (int64_t first = 0; first < job.batch; first += kThreads) {
    __syncthreads();
    if (first + threadIdx.x < job.batch) labels[threadIdx.x] = job.y[first + threadIdx.x];
    __syncthreads();
    const int64_t last = job.batch - first < kThreads ? job.batch - first : kThreads;
    for (int64_t s = 0; s < last; ++s) {
      if (labels[s] != k) continue;
      ++count;
      if (!inside) continue;
      read<VECTOR>(job.grad, job.layout, first + s, e, job.grad_crossed, g);
      read<VECTOR>(job.x, job.layout, first + s, e, job.x_crossed, x);
      for (int j = 0; j < kVec; ++j) {
        const float p = pixel(static_cast<uint8_t>(x[j]));
        total[j] += clamp(clamp(p + n[j], 0.0f, 1.0f) - moved(g[j], job.step) - p, -job.eps, job.eps);
      }
    }
  }
  if (!inside || count == 0) return;  // a class that is not in the batch keeps its noise
  for (int j = 0; j < kVec; ++j) n[j] = clamp(total[j] / static_cast<float>(count), -job.eps, job.eps);
  write<VECTOR>(job.noise, job.layout, k, e, false, n);
}

}  // namespace

cudaError_t launch_class_step(const ClassStep& job, cudaStream_t stream) {
  if (job.batch == 0 || job.layout.size == 0 || job.classes == 0) return cudaSuccess;
  const int64_t blocks = blocks_per_picture(job.layout);
  const bool vector = vector_ready(job.noise, job.layout, false) &&
                      vector_ready(job.grad, job.layout, job.grad_crossed) &&
                      vector_ready(job.x, job.layout, job.x_crossed);
  const dim3 grid(static_cast<unsigned>(job.classes * blocks));
  if (vector) {
    class_step_kernel<true><<<grid, kThreads, 0, stream>>>(job, blocks);
  } else {
    class_step_kernel<false><<<grid, kThreads, 0, stream>>>(job, blocks);
  }
  return cudaGetLastError();
}

}  // namespace fastue
