// weight_noise on CUDA: a thread for each counter; 16 of them write 16 neighbours. The definition is
// fastue/ops/weight_noise/reference.py.
#include "../common/normal.h"
#include "weight_noise.h"

namespace fastue {
namespace {

template <class O>
__global__ void __launch_bounds__(kThreads) weight_noise_kernel(const __grid_constant__ WeightNoise job) {
  const int64_t k = blockIdx.y;
  const int64_t counter = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (counter >= job.size / 4) return;
  const int64_t block = counter / kLanes, lane = counter % kLanes;
  const Words place = weight_counter(job.table[block], static_cast<uint32_t>(lane),
                                     static_cast<uint32_t>(job.draws[k]), job.purpose);
  const Normals z = normals(philox(place, job.seed));
  O* out = static_cast<O*>(job.out.data) + k * job.size;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t at = block * kBlock + lane + kLanes * i;
    out[at] = narrowed<O>(job.base[at] + job.sigma * z.v[i]);
  }
}

}  // namespace

cudaError_t launch_weight_noise(const WeightNoise& job, cudaStream_t stream) {
  if (job.count == 0 || job.size == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((job.size + kPerBlock - 1) / kPerBlock), static_cast<unsigned>(job.count));
  if (job.out.type == Type::f32) {
    weight_noise_kernel<float><<<grid, kThreads, 0, stream>>>(job);
  } else {
    weight_noise_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(job);
  }
  return cudaGetLastError();
}

}  // namespace fastue
