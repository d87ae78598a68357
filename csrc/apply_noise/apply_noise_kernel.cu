// apply_noise on CUDA: one pass. The definition is fastue/ops/apply_noise/reference.py.
#include "../common/philox.h"
#include "apply_noise.h"

namespace fastue {
namespace {

// The pixel that comes to lie at `to` of picture i; false where it is border.
__device__ FASTUE_INLINE bool source(const ApplyNoise& job, int64_t i, uint32_t to, uint32_t& from) {
  const CropFlip crop = crop_flip(job.ids[i], job.seed, job.epoch, job.pad, job.flip);
  const uint32_t line = to / job.width, column = to - line * job.width;
  const int64_t y = line + crop.down;
  const int64_t x = (crop.mirrored ? job.width - 1 - column : column) + crop.right;
  from = static_cast<uint32_t>(y * job.width + x);
  return y >= 0 && y < job.height && x >= 0 && x < job.width;
}

// Cropped pixels are read one at a time: a row of the output starts anywhere in a row of the picture.
template <class N, class O, int C, bool VECTOR>
__global__ void __launch_bounds__(kThreads) apply_noise_kernel(const __grid_constant__ ApplyNoise job) {
  constexpr int P = kPixels<VECTOR>;
  const int64_t i = blockIdx.x, row = job.index[i];
  const uint32_t first = (blockIdx.y * kThreads + threadIdx.x) * P;
  if (first >= job.area) return;

  const bool known = row >= 0 && row < job.rows;
  uint32_t from = first;
  bool visible = known;
  if (!VECTOR && job.ids != nullptr) visible = source(job, i, first, from) && known;
  Share<uint8_t, C, P> x;
  Share<N, C, P> noise;
  if (visible) {
    x = Share<uint8_t, C, P>(job.x, i, job.area, from);
    noise = Share<N, C, P>(job.noise, row, job.area, from);
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
  const bool vector = job.ids == nullptr && vector_ready(job.noise, job.area) && vector_ready(job.x, job.area) &&
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
