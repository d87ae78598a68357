// apply_noise on CUDA: one pass. The definition is fastue/ops/apply_noise/reference.py.
#include "../common/philox.h"
#include "apply_noise.h"

namespace fastue {
namespace {

__device__ FASTUE_INLINE float protect(float x, float n, const ApplyNoise& job) {
  if (job.noise.type == Type::s8) n *= job.scale;
  return clamp(pixel(static_cast<uint8_t>(x)) + n, 0.0f, 1.0f);
}

template <bool VECTOR>
__global__ void __launch_bounds__(kThreads) apply_noise_kernel(const __grid_constant__ ApplyNoise job, int64_t blocks) {
  const int64_t i = blockIdx.x / blocks;
  const uint32_t e = (static_cast<uint32_t>(blockIdx.x % blocks) * kThreads + threadIdx.x) * kVec;
  if (e >= job.layout.size) return;
  const int64_t row = job.index[i];
  const bool known = row >= 0 && row < job.rows;
  float v[kVec];
  if (!known) {
    for (int j = 0; j < kVec; ++j) v[j] = __int_as_float(0x7FC00000);  // NaN: an error here would stop the device
  } else if (VECTOR || job.ids == nullptr) {
    float n[kVec];
    read<VECTOR>(job.x, job.layout, i, e, job.x_crossed, v);
    read<VECTOR>(job.noise, job.layout, row, e, false, n);
    for (int j = 0; j < kVec; ++j) v[j] = protect(v[j], n[j], job);
  } else {
    const CropFlip crop = crop_flip(job.ids[i], job.seed, job.epoch, job.pad, job.flip);
    for (int j = 0; j < kVec; ++j) {
      v[j] = 0.0f;
      if (e + j >= job.layout.size) continue;
      const uint32_t c = job.layout.channel(e + j), to = job.layout.pixel_of(e + j);
      const int32_t line = static_cast<int32_t>(to) / job.width;
      const int64_t y = line + crop.down;
      const int32_t q = static_cast<int32_t>(to) - line * job.width;
      const int64_t column = (crop.mirrored ? job.width - 1 - q : q) + crop.right;
      if (y < 0 || y >= job.height || column < 0 || column >= job.width) continue;
      const uint32_t from = static_cast<uint32_t>(y * job.width + column);
      const uint32_t own = job.layout.interleaved ? from * job.layout.channels + c : c * job.layout.area + from;
      const uint32_t x_at = job.x_crossed ? job.layout.other(c, from) : own;
      v[j] = protect(get(job.x, i * job.layout.size + x_at), get(job.noise, row * job.layout.size + own), job);
    }
  }
  if (job.norm.on) normalise(v, job.norm, job.layout, e);
  write<VECTOR>(job.out, job.layout, i, e, job.out_crossed, v);
}

}  // namespace

cudaError_t launch_apply_noise(const ApplyNoise& job, cudaStream_t stream) {
  if (job.batch == 0 || job.layout.size == 0) return cudaSuccess;
  const int64_t blocks = blocks_per_picture(job.layout);
  const bool vector = job.ids == nullptr && vector_ready(job.noise, job.layout, false) &&
                      vector_ready(job.x, job.layout, job.x_crossed) &&
                      vector_ready(job.out, job.layout, job.out_crossed);
  const dim3 grid(static_cast<unsigned>(job.batch * blocks));
  if (vector) {
    apply_noise_kernel<true><<<grid, kThreads, 0, stream>>>(job, blocks);
  } else {
    apply_noise_kernel<false><<<grid, kThreads, 0, stream>>>(job, blocks);
  }
  return cudaGetLastError();
}

}  // namespace fastue
