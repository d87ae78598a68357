// apply_noise on CUDA: one pass. The definition is fastue/ops/apply_noise/reference.py.
#include "apply_noise.h"

namespace fastue {
namespace {

// Pixels in a view are read one at a time: a row of the output starts anywhere in a row of the picture, and several of
// them show one value of the bank.
template <class N, class O, int C, bool VECTOR>
__global__ void __launch_bounds__(kThreads) apply_noise_kernel(const __grid_constant__ ApplyNoise job) {
  constexpr int P = kPixels<VECTOR>;
  const int64_t i = blockIdx.x, row = job.index[i];
  const uint32_t first = (blockIdx.y * kThreads + threadIdx.x) * P;
  if (first >= job.area) return;

  const bool known = row >= 0 && row < job.rows;
  uint32_t from = first, value = first, values = job.area;  // in the picture, in the bank, and how many a channel has
  bool visible = known;
  if (!VECTOR && !job.view.plain()) {
    const int32_t line = first / job.view.width, column = first - line * job.view.width;
    const Pixel source = job.view.source(job.view.window(i), {line, column});
    visible = known && job.view.inside(source);
    if (visible) {
      from = job.view.at(source);
      value = job.view.block_at(source);
      values = job.view.blocks();
    }
  }
  Share<uint8_t, C, P> x;
  Share<N, C, P> noise;
  if (visible) {
    x = Share<uint8_t, C, P>(job.x, i, job.area, from);
    noise = Share<N, C, P>(job.noise, row, values, value);
  }
  float v[C][P];
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int q = 0; q < P; ++q) {
      float n = noise.get(c, q);
      if (std::is_same_v<N, int8_t>) n *= job.scale;
      v[c][q] = visible ? clamp(pixel(static_cast<uint8_t>(x.get(c, q))) + n, 0.0f, 1.0f) : 0.0f;
      if (!known) v[c][q] = __int_as_float(0x7FC00000);  // NaN: an error here would stop the device
    }
  }
  store_input<O>(v, job.norm, job.out, i, job.area, first);
}

}  // namespace

cudaError_t launch_apply_noise(const ApplyNoise& job, cudaStream_t stream) {
  if (job.batch == 0 || job.area == 0) return cudaSuccess;
  const bool vector = job.view.plain() && vector_ready(job.noise, job.area) && vector_ready(job.x, job.area) &&
                      vector_ready(job.out, job.area);
  return by_bank(job.noise.type, [&](auto bank) {
    return by_float(job.out.type, [&](auto out) {
      return by_shape(job.channels, vector, [&](auto channels, auto by_four) {
        constexpr bool kVector = decltype(by_four)::value;
        const dim3 grid = grid_of(job.batch, job.area, kThreads * kPixels<kVector>);
        apply_noise_kernel<decltype(bank), decltype(out), decltype(channels)::value, kVector>
            <<<grid, kThreads, 0, stream>>>(job);
        return cudaGetLastError();
      });
    });
  });
}

}  // namespace fastue
