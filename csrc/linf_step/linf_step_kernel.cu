// linf_step on CUDA: one pass, in place. The definition is fastue/ops/linf_step/reference.py.
#include "linf_step.h"

namespace fastue {
namespace {

template <bool VECTOR>
__global__ void __launch_bounds__(kThreads) linf_step_kernel(const __grid_constant__ LinfStep job, int64_t blocks) {
  const int64_t i = blockIdx.x / blocks;
  const uint32_t e = (static_cast<uint32_t>(blockIdx.x % blocks) * kThreads + threadIdx.x) * kVec;
  const int64_t row = job.index[i];
  if (e >= job.layout.size || row < 0 || row >= job.rows) return;
  float n[kVec], g[kVec], x[kVec], next[kVec];
  read<VECTOR>(job.noise, job.layout, row, e, false, n);
  read<VECTOR>(job.grad, job.layout, i, e, job.grad_crossed, g);
  read<VECTOR>(job.x, job.layout, i, e, job.x_crossed, x);
  const bool compact = job.noise.type == Type::s8;
  for (int j = 0; j < kVec; ++j) {
    const float p = pixel(static_cast<uint8_t>(x[j]));
    if (compact) n[j] *= job.scale;
    n[j] = clamp(clamp(n[j] - moved(g[j], job.step), -job.eps, job.eps), -p, 1.0f - p);
    if (job.mask != nullptr && e + j < job.layout.size) {
      const bool* mask = job.mask + (job.mask_shared ? 0 : i * job.layout.area);
      if (!mask[job.layout.pixel_of(e + j)]) n[j] = 0.0f;
    }
    if (compact) n[j] = nearest(clamp(n[j] * job.inverse, -127.0f, 127.0f));
    next[j] = clamp(p + (compact ? n[j] * job.scale : n[j]), 0.0f, 1.0f);
  }
  write<VECTOR>(job.noise, job.layout, row, e, false, n);
  if (job.out.data == nullptr) return;
  if (job.norm.on) normalise(next, job.norm, job.layout, e);
  write<VECTOR>(job.out, job.layout, i, e, job.out_crossed, next);
}

}  // namespace

cudaError_t launch_linf_step(const LinfStep& job, cudaStream_t stream) {
  if (job.batch == 0 || job.layout.size == 0) return cudaSuccess;
  const int64_t blocks = blocks_per_picture(job.layout);
  const bool vector = vector_ready(job.noise, job.layout, false) &&
                      vector_ready(job.grad, job.layout, job.grad_crossed) &&
                      vector_ready(job.x, job.layout, job.x_crossed) &&
                      vector_ready(job.out, job.layout, job.out_crossed);
  const dim3 grid(static_cast<unsigned>(job.batch * blocks));
  if (vector) {
    linf_step_kernel<true><<<grid, kThreads, 0, stream>>>(job, blocks);
  } else {
    linf_step_kernel<false><<<grid, kThreads, 0, stream>>>(job, blocks);
  }
  return cudaGetLastError();
}

}  // namespace fastue
