// Small kernels, right and wrong, by which ../test_cuda_emulator.py sees that the emulator notices what it should.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

template <bool BARRIER>
__global__ void reversed(const int* in, int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = in[threadIdx.x];
  if (BARRIER) __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

// The second value overwrites the first before a slow neighbour has read it, unless a barrier stands between.
template <bool BARRIER>
__global__ void twice(const int* in, int* out) {
  __shared__ int values[64];
  int sum = 0;
  for (int round = 0; round < 2; ++round) {
    if (BARRIER) __syncthreads();
    values[threadIdx.x] = in[64 * round + threadIdx.x];
    __syncthreads();
    sum += values[63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

__global__ void not_initialised(int* out) {
  __shared__ int value;
  *out = value;
  value = 1;
}

__global__ void quads(const float* in, float* out, int offset) {
  const float4 v = *reinterpret_cast<const float4*>(in + offset + 4 * threadIdx.x);
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

__global__ void parted(int lines) {
  if (threadIdx.x < 32) {
    if (lines == 0) return;  // allowed: who has returned is not waited for
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void parted_warp() {
  if (threadIdx.x % 2) {
    __any_sync(0xFFFFFFFFu, 1);
  } else {
    __syncthreads();
  }
}

__global__ void collectives(const double* in, double* out) {
  const unsigned all = 0xFFFFFFFFu, t = threadIdx.x, lane = t % 32;
  double sum = in[t], both = in[t];
  for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(all, sum, by), both += __shfl_xor_sync(all, both, by);
  const int odd = __popc(__ballot_sync(all, t % 2)), first = __ffs(__ballot_sync(all, lane > 4));
  const bool any = __any_sync(all, t == 40), every = __all_sync(all, t >= 32);
  const int from = __shfl_sync(all, static_cast<int>(t), 7), count = __syncthreads_count(t < 50);
  __syncwarp();
  const double results[] = {lane ? 0 : sum, both, double(odd), double(first), double(any), double(every),
                            double(from), double(count), double(__syncthreads_or(t == 63))};
  for (int i = 0; i < 9; ++i) out[9 * t + i] = results[i];
}

__global__ void tickets(unsigned* next, unsigned* order) {
  order[blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)] = atomicAdd(next, 1u);
}

__global__ void convert(const float* in, unsigned short* bf16, unsigned short* half, float* back, int count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < 65536) back[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i)));
  if (i >= static_cast<unsigned>(count)) return;
  bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(in[i]));
  half[i] = __half_as_ushort(__float2half_rn(in[i]));
}

}  // namespace

EXPORT int run_reversed(bool barrier, const int* in, int* out) {
  if (barrier) {
    reversed<true><<<1, 64, 0, nullptr>>>(in, out);
  } else {
    reversed<false><<<1, 64, 0, nullptr>>>(in, out);
  }
  return cudaGetLastError();
}
EXPORT int run_twice(bool barrier, const int* in, int* out) {
  if (barrier) {
    twice<true><<<1, 64, 0, nullptr>>>(in, out);
  } else {
    twice<false><<<1, 64, 0, nullptr>>>(in, out);
  }
  return cudaGetLastError();
}
EXPORT int run_not_initialised(int* out) {
  not_initialised<<<2, 1, 0, nullptr>>>(out);
  return cudaGetLastError();
}
EXPORT int run_quads(const float* in, float* out, int offset) {
  quads<<<1, 4, 0, nullptr>>>(in, out, offset);
  return cudaGetLastError();
}
EXPORT int run_parted(int lines) {
  parted<<<1, 64, 0, nullptr>>>(lines);
  return cudaGetLastError();
}
EXPORT int run_parted_warp() {
  parted_warp<<<1, 64, 0, nullptr>>>();
  return cudaGetLastError();
}
EXPORT int run_collectives(const double* in, double* out) {
  collectives<<<1, 64, 0, nullptr>>>(in, out);
  return cudaGetLastError();
}
EXPORT int run_tickets(unsigned* next, unsigned* order, unsigned x, unsigned y, unsigned z, unsigned threads) {
  tickets<<<dim3(x, y, z), (threads), 0, nullptr>>>(next, order);
  return cudaGetLastError();
}
EXPORT int run_convert(const float* in, unsigned short* bf16, unsigned short* half, float* back, int count) {
  convert<<<1024, 256, 0, nullptr>>>(in, bf16, half, back, count);
  return cudaGetLastError();
}
