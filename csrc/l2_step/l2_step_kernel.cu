// l2_step on CUDA: a block owns a sample and goes over it three times: the gradient's norm, the norm of the step, the
// projection. The definition is fastue/ops/l2_step/reference.py.
#include "l2_step.h"

namespace fastue {
namespace {

// Sum over the block, the same in every thread and in a fixed order.
__device__ double block_sum(double v) {
  __shared__ double parts[kThreads];
  __syncthreads();
  parts[threadIdx.x] = v;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  return parts[0];
}

template <bool VECTOR>
__global__ void __launch_bounds__(kThreads) l2_step_kernel(const __grid_constant__ L2Step job) {
  const int64_t i = blockIdx.x, row = job.index[i];
  if (row < 0 || row >= job.rows) return;  // all threads alike
  const uint32_t stride = kThreads * kVec;
  float n[kVec], g[kVec], x[kVec];
  double squares = 0;
  for (uint32_t e = threadIdx.x * kVec; e < job.layout.size; e += stride) {
    read<VECTOR>(job.grad, job.layout, i, e, job.grad_crossed, g);
    for (int j = 0; j < kVec; ++j) squares += static_cast<double>(g[j]) * static_cast<double>(g[j]);
  }
  double length = sqrt(block_sum(squares));
  const bool usable = length > 0 && isfinite(length);  // no direction, no move
  const float factor = usable ? static_cast<float>(job.step / length) : 0.0f;
  squares = 0;
  for (uint32_t e = threadIdx.x * kVec; e < job.layout.size; e += stride) {
    read<VECTOR>(job.noise, job.layout, row, e, false, n);
    read<VECTOR>(job.grad, job.layout, i, e, job.grad_crossed, g);
    for (int j = 0; j < kVec; ++j) {
      const double moved_to = usable ? n[j] + g[j] * factor : n[j];
      squares += moved_to * moved_to;
    }
  }
  length = sqrt(block_sum(squares));
  const float shrink = length > job.eps ? static_cast<float>(job.eps / length) : 1.0f;
  for (uint32_t e = threadIdx.x * kVec; e < job.layout.size; e += stride) {
    read<VECTOR>(job.noise, job.layout, row, e, false, n);
    read<VECTOR>(job.grad, job.layout, i, e, job.grad_crossed, g);
    read<VECTOR>(job.x, job.layout, i, e, job.x_crossed, x);
    for (int j = 0; j < kVec; ++j) {
      const float p = pixel(static_cast<uint8_t>(x[j]));
      n[j] = clamp((usable ? n[j] + g[j] * factor : n[j]) * shrink, -p, 1.0f - p);
      g[j] = clamp(p + n[j], 0.0f, 1.0f);
    }
    write<VECTOR>(job.noise, job.layout, row, e, false, n);
    if (job.out.data == nullptr) continue;
    if (job.norm.on) normalise(g, job.norm, job.layout, e);
    write<VECTOR>(job.out, job.layout, i, e, job.out_crossed, g);
  }
}

}  // namespace

cudaError_t launch_l2_step(const L2Step& job, cudaStream_t stream) {
  if (job.batch == 0 || job.layout.size == 0) return cudaSuccess;
  const bool vector = vector_ready(job.noise, job.layout, false) &&
                      vector_ready(job.grad, job.layout, job.grad_crossed) &&
                      vector_ready(job.x, job.layout, job.x_crossed) &&
                      vector_ready(job.out, job.layout, job.out_crossed);
  const dim3 grid(static_cast<unsigned>(job.batch));
  if (vector) {
    l2_step_kernel<true><<<grid, kThreads, 0, stream>>>(job);
  } else {
    l2_step_kernel<false><<<grid, kThreads, 0, stream>>>(job);
  }
  return cudaGetLastError();
}

}  // namespace fastue
