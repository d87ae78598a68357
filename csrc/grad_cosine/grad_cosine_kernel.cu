// grad_cosine on CUDA: a block sums a piece; the block that is the last one to be done adds the sums of all pieces, in
// their order, so that the result does not depend on which one that is. The definition is
// fastue/ops/grad_cosine/reference.py.
#include "grad_cosine.h"

#include "../common/pieces.h"

namespace fastue {
namespace {

// The sum over the block's threads, in a fixed order; in thread 0.
__device__ Triple block_sum(const Triple& own) {
  __shared__ double parts[3][kThreads];
  __syncthreads();
  parts[0][threadIdx.x] = own.n, parts[1][threadIdx.x] = own.q, parts[2][threadIdx.x] = own.m;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half)
      for (auto& row : parts) row[threadIdx.x] += row[threadIdx.x + half];
    __syncthreads();
  }
  return {parts[0][0], parts[1][0], parts[2][0]};
}

template <class T>
__global__ void __launch_bounds__(kThreads) grad_cosine_kernel(const __grid_constant__ GradCosine job) {
  const Piece<T> piece(job.list, blockIdx.x);
  Triple own{0, 0, 0};
  piece.each([&](int64_t i, auto count) {
    constexpr int N = decltype(count)::value;
    const auto g = load_pack<T, N>(piece.g + i), h = load_pack<T, N>(piece.h + i);
#pragma unroll
    for (int k = 0; k < N; ++k) own.add(to_float(g.v[k]), to_float(h.v[k]));
  });
  Triple sum = block_sum(own);
  __shared__ bool last;
  if (threadIdx.x == 0) {
    job.sums[job.before + blockIdx.x] = sum;
    __threadfence();  // the sum is there before it is counted
    last = atomicAdd(job.done, 1u) == job.pieces - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  own = {0, 0, 0};
  for (uint32_t p = threadIdx.x; p < job.pieces; p += kThreads) {
    const volatile Triple& part = job.sums[p];
    own.add({part.n, part.q, part.m});
  }
  sum = block_sum(own);
  if (threadIdx.x == 0) job.out[0] = sum.n, job.out[1] = sum.q, job.out[2] = sum.m;
}

}  // namespace

cudaError_t launch_grad_cosine(const GradCosine& job, cudaStream_t stream) {
  if (job.list.pieces == 0) return cudaSuccess;
  return by_float(job.list.type, [&](auto t) {
    grad_cosine_kernel<decltype(t)><<<job.list.pieces, kThreads, 0, stream>>>(job);
    return cudaGetLastError();
  });
}

}  // namespace fastue
