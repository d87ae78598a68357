// l2_step on CUDA. It needs two norms of the whole picture: of the gradient, and of the noise after the step. A picture
// that fits the registers of one block is read once. A larger one is cut into pieces, with a launch for each norm and
// one for the projection, for as many pictures at a time as stay in the L2 cache: only the first launch reads memory.
// The definition is fastue/ops/l2_step/reference.py.
#include "l2_step.h"

#include "../common/blocks.h"

namespace fastue {
namespace {

// What may stay in the L2 cache between two launches; tests set less, to have several groups of pictures.
#ifndef FASTUE_CACHE_BYTES
#define FASTUE_CACHE_BYTES (16 << 20)
#endif
constexpr int64_t kCacheBytes = FASTUE_CACHE_BYTES;
constexpr int kMostThreads = 1024;

enum class Stage { whole, gradient, step, project };

// Sum over the block, the same in every thread and in a fixed order.
__device__ double block_sum(double v) {
  __shared__ double parts[kMostThreads];
  __syncthreads();
  parts[threadIdx.x] = v;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  return parts[0];
}

// The sum over a picture's pieces, of those that an earlier launch left.
__device__ double sum_of_pieces(const double* sums, unsigned pieces) {
  double v = 0;
  for (unsigned p = threadIdx.x; p < pieces; p += blockDim.x) v += sums[p];
  return block_sum(v);
}

template <class G, int C, bool VECTOR, Stage STAGE>
__global__ void __launch_bounds__(STAGE == Stage::whole ? kMostThreads : kThreads)
    l2_step_kernel(const __grid_constant__ L2Step job, int64_t picture) {
  constexpr int P = kPixels<VECTOR>;
  const int64_t i = picture + blockIdx.x, row = job.index[i];
  if (row < 0 || row >= job.rows) return;  // all threads alike
  const uint32_t first = (blockIdx.y * blockDim.x + threadIdx.x) * P;
  const bool inside = first < job.area;  // those outside still help to add
  double* sums = job.sums + i * 2 * gridDim.y;

  Share<G, C, P> grad;
  Share<float, C, P> noise;
  if (inside) {
    grad = Share<G, C, P>(job.grad, i, job.area, first);
    if (STAGE != Stage::gradient) noise = Share<float, C, P>(job.noise, row, job.area, first);
  }

  double squares = 0;
  if (STAGE == Stage::whole || STAGE == Stage::gradient) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int q = 0; q < P; ++q) squares += static_cast<double>(grad.get(c, q)) * static_cast<double>(grad.get(c, q));
    }
    squares = block_sum(squares);
  } else {
    squares = sum_of_pieces(sums, gridDim.y);
  }
  if (STAGE == Stage::gradient) {
    if (threadIdx.x == 0) sums[blockIdx.y] = squares;
    return;
  }
  double length = sqrt(squares);
  const bool usable = length > 0 && isfinite(length);  // no direction, no move
  const float factor = usable ? static_cast<float>(job.step / length) : 0.0f;

  float n[C][P];
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int q = 0; q < P; ++q) n[c][q] = usable ? noise.get(c, q) + grad.get(c, q) * factor : noise.get(c, q);
  }
  if (STAGE == Stage::project) {
    squares = sum_of_pieces(sums + gridDim.y, gridDim.y);
  } else {
    squares = 0;
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int q = 0; q < P; ++q) squares += static_cast<double>(n[c][q]) * static_cast<double>(n[c][q]);
    }
    squares = block_sum(squares);
  }
  if (STAGE == Stage::step) {
    if (threadIdx.x == 0) sums[gridDim.y + blockIdx.y] = squares;
    return;
  }
  if (!inside) return;
  length = sqrt(squares);
  const float shrink = length > job.eps ? static_cast<float>(job.eps / length) : 1.0f;

  const Share<uint8_t, C, P> x(job.x, i, job.area, first);
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int q = 0; q < P; ++q) {
      const float p = pixel(static_cast<uint8_t>(x.get(c, q)));
      const float projected = clamp(n[c][q] * shrink, -p, 1.0f - p);
      noise.set(c, q, projected);
      n[c][q] = clamp(p + projected, 0.0f, 1.0f);
    }
  }
  noise.store(job.noise, row, job.area, first);
  if (job.out.data != nullptr) store_next(n, job.norm, job.out, i, job.area, first);
}

// Any view, by a block for each picture: f is called with each of a thread's values, its channel and block, and the
// block's mean gradient.
template <class G, class F>
__device__ FASTUE_INLINE void each_value(const L2Step& job, const CropFlip& window, const F& f) {
  const int64_t i = blockIdx.x;
  const int32_t channels = job.channels, blocks = job.view.blocks();
  for (int32_t value = threadIdx.x; value < blocks * channels; value += blockDim.x) {
    const auto [channel, b] = Owned(job.noise, value, channels, blocks);
    const Block block = job.view.block(b);
    const Plane<float> noise(job.noise, job.index[i], channel, channels, blocks);
    const Plane<const G> grad(job.grad, i, channel, channels, job.area);
    f(noise[b], channel, block, gradient_of(job.view, window, block, grad) / static_cast<float>(block.pixels()));
  }
}

__device__ FASTUE_INLINE double square(const Block& block, float v) {
  return static_cast<double>(v) * static_cast<double>(v) * static_cast<double>(block.pixels());
}

template <class G>
__global__ void __launch_bounds__(kMostThreads) l2_step_view_kernel(const __grid_constant__ L2Step job) {
  const int64_t i = blockIdx.x, row = job.index[i];
  if (row < 0 || row >= job.rows) return;  // all threads alike
  const CropFlip window = job.view.window(i);
  double squares = 0;
  each_value<G>(job, window, [&](float&, int32_t, const Block& block, float g) { squares += square(block, g); });
  double length = sqrt(block_sum(squares));
  const bool usable = length > 0 && isfinite(length);  // no direction, no move
  const float factor = usable ? static_cast<float>(job.step / length) : 0.0f;
  squares = 0;
  each_value<G>(job, window, [&](float& n, int32_t, const Block& block, float g) {
    if (usable) n += g * factor;
    squares += square(block, n);
  });
  length = sqrt(block_sum(squares));
  const float shrink = length > job.eps ? static_cast<float>(job.eps / length) : 1.0f;
  each_value<G>(job, window, [&](float& n, int32_t channel, const Block& block, float) {
    const int32_t channels = job.channels;
    const Plane<const uint8_t> x(job.x, i, channel, channels, job.area);
    const Room room = room_of(job.view, block, x);
    const float projected = clamp(n * shrink, -room.darker, room.brighter);
    n = projected;
    if (job.out.data == nullptr) return;
    show_block({job.view, window, job.norm, job.out, i, channel, channels}, block, x, projected);
  });
}

bool by_fours(const L2Step& job) {
  return vector_ready(job.noise, job.area) && vector_ready(job.grad, job.area) && vector_ready(job.x, job.area) &&
         vector_ready(job.out, job.area);
}

template <class G, int C, bool VECTOR>
cudaError_t launch(const L2Step& job, cudaStream_t stream) {
  if (job.sums == nullptr) {
    const int threads = job.area <= kThreads * kPixels<VECTOR> ? kThreads : kMostThreads;
    l2_step_kernel<G, C, VECTOR, Stage::whole><<<static_cast<unsigned>(job.batch), threads, 0, stream>>>(job, 0);
    return cudaGetLastError();
  }
  const int64_t bytes = int64_t{job.area} * C * (4 + static_cast<int64_t>(sizeof(G)) + 1);
  const int64_t group = bytes < kCacheBytes ? kCacheBytes / bytes : 1;
  for (int64_t i = 0; i < job.batch; i += group) {
    const int64_t pictures = job.batch - i < group ? job.batch - i : group;
    const dim3 grid = grid_of(pictures, job.area, kThreads * kPixels<VECTOR>);
    l2_step_kernel<G, C, VECTOR, Stage::gradient><<<grid, kThreads, 0, stream>>>(job, i);
    l2_step_kernel<G, C, VECTOR, Stage::step><<<grid, kThreads, 0, stream>>>(job, i);
    l2_step_kernel<G, C, VECTOR, Stage::project><<<grid, kThreads, 0, stream>>>(job, i);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t pieces_of(const L2Step& job) {
  const int64_t pixels = by_fours(job) ? kPixels<true> : kPixels<false>;
  if (!job.view.plain() || job.area <= kMostThreads * pixels) return 1;
  return (job.area + kThreads * pixels - 1) / (kThreads * pixels);
}

cudaError_t launch_l2_step(const L2Step& job, cudaStream_t stream) {
  if (job.batch == 0 || job.area == 0) return cudaSuccess;
  if (!job.view.plain())
    return by_float(job.grad.type, [&](auto grad) {
      const int threads = int64_t{job.view.blocks()} * job.channels <= kThreads ? kThreads : kMostThreads;
      l2_step_view_kernel<decltype(grad)><<<static_cast<unsigned>(job.batch), threads, 0, stream>>>(job);
      return cudaGetLastError();
    });
  return by_float(job.grad.type, [&](auto grad) {
    return by_shape(job.channels, by_fours(job), [&](auto channels, auto by_four) {
      return launch<decltype(grad), decltype(channels)::value, decltype(by_four)::value>(job, stream);
    });
  });
}

}  // namespace fastue
