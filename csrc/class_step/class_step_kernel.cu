// class_step on CUDA: first the samples of each class are listed, once; then a block owns a piece of one class and walks
// its list. The list is in batch order, so the sum has the same bits every time and needs no atomics. The definition is
// fastue/ops/class_step/reference.py.
#include "class_step.h"

#include "../common/blocks.h"

namespace fastue {
namespace {

constexpr int kWarps = kThreads / 32;
// With fewer blocks than this many a GPU idles: then a thread owns one pixel, and a block has few threads.
constexpr int64_t kEnoughBlocks = 256;
constexpr int kFewThreads = 64;

// A block lists class k: order[bounds[2k]..bounds[2k+1]) are its samples, behind those of lower classes. A label that is
// no class is in no list.
__global__ void __launch_bounds__(kThreads) class_lists_kernel(const __grid_constant__ ClassStep job) {
  __shared__ int of_warp[kWarps];
  const int64_t k = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t start = 0;
  for (int64_t i = threadIdx.x; i - threadIdx.x < job.batch; i += kThreads)
    start += __syncthreads_count(i < job.batch && job.y[i] >= 0 && job.y[i] < k);
  int64_t end = start;
  for (int64_t i = threadIdx.x; i - threadIdx.x < job.batch; i += kThreads) {
    const bool mine = i < job.batch && job.y[i] == k;
    const unsigned in_warp = __ballot_sync(0xFFFFFFFFu, mine);
    if (lane == 0) of_warp[warp] = __popc(in_warp);
    __syncthreads();
    int64_t at = end + __popc(in_warp & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += of_warp[w];
      end += of_warp[w];
    }
    if (mine) job.order[at] = i;
    __syncthreads();  // before the next round overwrites of_warp
  }
  if (threadIdx.x == 0) {
    job.bounds[2 * k] = start;
    job.bounds[2 * k + 1] = end;
  }
}

template <bool VECTOR>
constexpr int kBlockThreads = VECTOR ? kThreads : kFewThreads;

template <class G, int C, bool VECTOR>
__global__ void __launch_bounds__(kBlockThreads<VECTOR>) class_step_kernel(const __grid_constant__ ClassStep job) {
  constexpr int P = kPixels<VECTOR>;
  constexpr int kAhead = P * C > 4 ? 1 : 4;  // samples whose loads are under way together, as registers allow
  const int64_t k = blockIdx.x;
  const int64_t start = job.bounds[2 * k], end = job.bounds[2 * k + 1];
  const uint32_t first = (blockIdx.y * kBlockThreads<VECTOR> + threadIdx.x) * P;
  if (start == end || first >= job.area) return;  // a class that is not in the batch keeps its noise

  Share<float, C, P> noise(job.noise, k, job.area, first);
  float total[C][P] = {};
  for (int64_t s = start; s < end; s += kAhead) {
    Share<G, C, P> grad[kAhead];
    Share<uint8_t, C, P> x[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (s + a >= end) continue;
      const int64_t i = job.order[s + a];
      grad[a] = Share<G, C, P>(job.grad, i, job.area, first);
      x[a] = Share<uint8_t, C, P>(job.x, i, job.area, first);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (s + a >= end) continue;
#pragma unroll
      for (int c = 0; c < C; ++c) {
#pragma unroll
        for (int q = 0; q < P; ++q) {
          const float p = pixel(static_cast<uint8_t>(x[a].get(c, q)));
          const float moved_to = clamp(p + noise.get(c, q), 0.0f, 1.0f) - moved(grad[a].get(c, q), job.step);
          total[c][q] += clamp(moved_to - p, -job.eps, job.eps);
        }
      }
    }
  }
  const float count = static_cast<float>(end - start);
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int q = 0; q < P; ++q) noise.set(c, q, clamp(total[c][q] / count, -job.eps, job.eps));
  }
  noise.store(job.noise, k, job.area, first);
}

// Any view. Coarse noise has few values and many pixels for each: a warp has 32 values of one class, and the warps of a
// block take samples of it side by side, which are then added in batch order.
constexpr int kWarpSize = 32;

template <class G>
__device__ FASTUE_INLINE float step_of_sample(const ClassStep& job, int64_t i, int32_t channel, const Block& block,
                                              float n) {
  const int32_t channels = job.channels;
  const Plane<const G> grad(job.grad, i, channel, channels, job.area);
  const Plane<const uint8_t> x(job.x, i, channel, channels, job.area);
  const float move = moved(gradient_of(job.view, job.view.window(i), block, grad), job.step);
  float sum = 0.0f;
  for (int32_t y = block.top; y < block.bottom; ++y)
    for (int32_t column = block.left; column < block.right; ++column) {
      const float p = pixel(x[job.view.at({y, column})]);
      sum += clamp(clamp(p + n, 0.0f, 1.0f) - move - p, -job.eps, job.eps);
    }
  return sum;
}

template <class G>
__global__ void __launch_bounds__(kThreads)
    class_step_view_kernel(const __grid_constant__ ClassStep job, uint32_t pieces) {
  __shared__ float of_sample[kWarps][kWarpSize];
  const int64_t k = blockIdx.x / pieces;
  const int64_t start = job.bounds[2 * k], end = job.bounds[2 * k + 1];
  if (start == end) return;  // all threads alike
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int32_t value = blockIdx.x % pieces * kWarpSize + lane, channels = job.channels, blocks = job.view.blocks();
  const bool inside = value < blocks * channels;  // those outside still keep the others company at a barrier
  const auto [channel, b] = Owned(job.noise, inside ? value : 0, channels, blocks);
  const Block block = job.view.block(b);
  const Plane<float> noise(job.noise, k, channel, channels, blocks);
  const float n = inside ? noise[b] : 0.0f;

  float total = 0.0f;
  for (int64_t s = start; s < end; s += kWarps) {
    if (inside && s + warp < end)
      of_sample[warp][lane] = step_of_sample<G>(job, job.order[s + warp], channel, block, n);
    __syncthreads();
    for (int w = 0; w < kWarps && s + w < end; ++w) total += of_sample[w][lane];
    __syncthreads();  // before the next round overwrites of_sample
  }
  const float count = static_cast<float>((end - start) * block.pixels());
  if (inside && warp == 0) noise[b] = clamp(total / count, -job.eps, job.eps);
}

}  // namespace

cudaError_t launch_class_step(const ClassStep& job, cudaStream_t stream) {
  if (job.batch == 0 || job.area == 0 || job.classes == 0) return cudaSuccess;
  class_lists_kernel<<<static_cast<unsigned>(job.classes), kThreads, 0, stream>>>(job);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  if (!job.view.plain())
    return by_float(job.grad.type, [&](auto grad) {
      const uint32_t pieces = (job.view.blocks() * job.channels + kWarpSize - 1) / kWarpSize;
      const unsigned blocks = static_cast<unsigned>(job.classes * pieces);  // 2^31 of them would be a bank of 256 GiB
      class_step_view_kernel<decltype(grad)><<<blocks, kThreads, 0, stream>>>(job, pieces);
      return cudaGetLastError();
    });
  const dim3 large = grid_of(job.classes, job.area, kThreads * kPixels<true>);
  const bool vector = vector_ready(job.noise, job.area) && vector_ready(job.grad, job.area) &&
                      vector_ready(job.x, job.area) && int64_t{large.x} * large.y >= kEnoughBlocks;
  return by_float(job.grad.type, [&](auto grad) {
    return by_shape(job.channels, vector, [&](auto channels, auto by_four) {
      constexpr bool kVector = decltype(by_four)::value;
      constexpr int kBlock = kBlockThreads<kVector>;
      const dim3 grid = grid_of(job.classes, job.area, kBlock * kPixels<kVector>);
      class_step_kernel<decltype(grad), decltype(channels)::value, kVector><<<grid, kBlock, 0, stream>>>(job);
      return cudaGetLastError();
    });
  });
}

}  // namespace fastue
