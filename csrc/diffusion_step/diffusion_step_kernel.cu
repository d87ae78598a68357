// diffusion_step on CUDA: one pass, in place. A thread that owns four pixels makes their normal numbers from a counter a
// channel. The definition is fastue/ops/diffusion_step/reference.py.
#include "../common/device.h"
#include "diffusion_step.h"

namespace fastue {
namespace {

// Those of a thread's pixels of channel c; of a single pixel it takes one of a counter's four.
template <int P>
__device__ FASTUE_INLINE void normals_of(const DiffusionStep& job, int64_t id, uint32_t use, int c, uint32_t first,
                                         float (&z)[P]) {
  const uint32_t quad = c * static_cast<uint32_t>(job.quads()) + first / 4;
  const Normals n = normals(philox(picture_counter(quad, id, use), job.seed));
  if (P == 4) {
#pragma unroll
    for (int q = 0; q < P; ++q) z[q] = n.v[q];
  } else {
    const uint32_t q = first % 4;
    z[0] = q < 2 ? (q == 0 ? n.v[0] : n.v[1]) : (q == 2 ? n.v[2] : n.v[3]);
  }
}

template <class E, int C, bool VECTOR>
__global__ void __launch_bounds__(kThreads) diffusion_step_kernel(const __grid_constant__ DiffusionStep job) {
  constexpr int P = kPixels<VECTOR>;
  const int64_t i = blockIdx.x, id = job.ids[i];
  const uint32_t first = (blockIdx.y * kThreads + threadIdx.x) * P;
  if (first >= job.area) return;

  Share<float, C, P> x(job.x, i, job.area, first);
  Share<E, C, P> eps;
  Share<uint8_t, C, P> y;
  const bool predicted = job.eps.data != nullptr, guided = job.y.data != nullptr;
  if (predicted) eps = Share<E, C, P>(job.eps, i, job.area, first);
  if (guided) y = Share<uint8_t, C, P>(job.y, i, job.area, first);
#pragma unroll
  for (int c = 0; c < C; ++c) {
    float copy[P] = {}, own[P] = {};
    if (job.noisy) normals_of<P>(job, id, job.copy, c, first, copy);
    if (job.sigma > 0.0f) normals_of<P>(job, id, job.own, c, first, own);
#pragma unroll
    for (int q = 0; q < P; ++q) {
      const float at = x.get(c, q), to = aim(static_cast<uint8_t>(y.get(c, q)));
      float v = job.cx * at;
      if (predicted) {
        float x0 = clamp(job.a * at - job.b * eps.get(c, q), -1.0f, 1.0f);
        if (guided && !job.noisy) x0 = x0 + job.pull * (to - x0);
        v = job.c0 * x0 + v;
      }
      if (job.noisy) v = v + job.pull * ((job.keep * to + job.spread * copy[q]) - at);
      if (job.sigma > 0.0f) v = v + job.sigma * own[q];
      x.set(c, q, v);
    }
  }
  if (job.grad.data != nullptr) {  // late: it would hold registers while the numbers are drawn
    const Share<float, C, P> grad(job.grad, i, job.area, first);
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int q = 0; q < P; ++q) x.set(c, q, x.get(c, q) + job.push * grad.get(c, q));
    }
  }
  x.store(job.x, i, job.area, first);
}

}  // namespace

cudaError_t launch_diffusion_step(const DiffusionStep& job, cudaStream_t stream) {
  if (job.batch == 0 || job.area == 0) return cudaSuccess;
  const bool vector = vector_ready(job.x, job.area) && vector_ready(job.eps, job.area) &&
                      vector_ready(job.y, job.area) && vector_ready(job.grad, job.area);
  return by_float(job.eps.type, [&](auto eps) {
    return by_shape(job.channels, vector, [&](auto channels, auto by_four) {
      constexpr bool kVector = decltype(by_four)::value;
      const dim3 grid = grid_of(job.batch, job.area, kThreads * kPixels<kVector>);
      diffusion_step_kernel<decltype(eps), decltype(channels)::value, kVector><<<grid, kThreads, 0, stream>>>(job);
      return cudaGetLastError();
    });
  });
}

}  // namespace fastue
