// linf_step on CUDA: one pass, in place. The definition is fastue/ops/linf_step/reference.py.
#include "linf_step.h"

#include "../common/blocks.h"

namespace fastue {
namespace {

template <class N, class G, int C, bool VECTOR>
__global__ void __launch_bounds__(kThreads) linf_step_kernel(const __grid_constant__ LinfStep job) {
  constexpr int P = kPixels<VECTOR>;
  constexpr bool kCompact = std::is_same_v<N, int8_t>;
  const int64_t i = blockIdx.x, row = job.index[i];
  const uint32_t first = (blockIdx.y * kThreads + threadIdx.x) * P;
  if (first >= job.area || row < 0 || row >= job.rows) return;

  Share<N, C, P> noise(job.noise, row, job.area, first);
  const Share<G, C, P> grad(job.grad, i, job.area, first);
  const Share<uint8_t, C, P> x(job.x, i, job.area, first);
  bool kept[P];
#pragma unroll
  for (int q = 0; q < P; ++q)
    kept[q] = job.mask == nullptr || job.mask[(job.mask_shared ? 0 : i * job.area) + first + q];

  float next[C][P];
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int q = 0; q < P; ++q) {
      const float p = pixel(static_cast<uint8_t>(x.get(c, q)));
      float n = noise.get(c, q);
      if (kCompact) n *= job.scale;
      n = clamp(clamp(n - moved(grad.get(c, q), job.step), -job.eps, job.eps), -p, 1.0f - p);
      if (!kept[q]) n = 0.0f;
      if (kCompact) n = nearest(clamp(n * job.inverse, -127.0f, 127.0f));
      noise.set(c, q, n);
      next[c][q] = clamp(p + (kCompact ? n * job.scale : n), 0.0f, 1.0f);
    }
  }
  noise.store(job.noise, row, job.area, first);
  if (job.out.data != nullptr) store_next(next, job.norm, job.out, i, job.area, first);
}

// Any view: a thread owns a value of the bank.
template <class N, class G>
__global__ void __launch_bounds__(kThreads) linf_step_view_kernel(const __grid_constant__ LinfStep job) {
  constexpr bool kCompact = std::is_same_v<N, int8_t>;
  const int64_t i = blockIdx.x, row = job.index[i];
  const int32_t value = blockIdx.y * kThreads + threadIdx.x, channels = job.channels, blocks = job.view.blocks();
  if (value >= blocks * channels || row < 0 || row >= job.rows) return;

  const auto [channel, b] = Owned(job.noise, value, channels, blocks);
  const Block block = job.view.block(b);
  const CropFlip window = job.view.window(i);
  const Plane<N> noise(job.noise, row, channel, channels, blocks);
  const Plane<const G> grad(job.grad, i, channel, channels, job.area);
  const Plane<const uint8_t> x(job.x, i, channel, channels, job.area);
  const Room room = room_of(job.view, block, x);
  float n = to_float(noise[b]) * job.scale;  // 1 for float32
  n -= moved(gradient_of(job.view, window, block, grad), job.step);
  n = clamp(clamp(n, -job.eps, job.eps), -room.darker, room.brighter);
  if (job.mask != nullptr && !job.mask[(job.mask_shared ? 0 : i * blocks) + b]) n = 0.0f;
  if (kCompact) n = nearest(clamp(n * job.inverse, -127.0f, 127.0f));
  noise[b] = narrowed<N>(n);
  if (job.out.data == nullptr) return;
  show_block({job.view, window, job.norm, job.out, i, channel, channels}, block, x, n * job.scale);
}

}  // namespace

cudaError_t launch_linf_step(const LinfStep& job, cudaStream_t stream) {
  if (job.batch == 0 || job.area == 0) return cudaSuccess;
  if (!job.view.plain())
    return by_bank(job.noise.type, [&](auto bank) {
      return by_float(job.grad.type, [&](auto grad) {
        const dim3 grid = grid_of(job.batch, int64_t{job.view.blocks()} * job.channels, kThreads);
        linf_step_view_kernel<decltype(bank), decltype(grad)><<<grid, kThreads, 0, stream>>>(job);
        return cudaGetLastError();
      });
    });
  const bool vector = vector_ready(job.noise, job.area) && vector_ready(job.grad, job.area) &&
                      vector_ready(job.x, job.area) && vector_ready(job.out, job.area);
  return by_bank(job.noise.type, [&](auto bank) {
    return by_float(job.grad.type, [&](auto grad) {
      return by_shape(job.channels, vector, [&](auto channels, auto by_four) {
        constexpr bool kVector = decltype(by_four)::value;
        const dim3 grid = grid_of(job.batch, job.area, kThreads * kPixels<kVector>);
        linf_step_kernel<decltype(bank), decltype(grad), decltype(channels)::value, kVector>
            <<<grid, kThreads, 0, stream>>>(job);
        return cudaGetLastError();
      });
    });
  });
}

}  // namespace fastue
