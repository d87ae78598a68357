// ghost_pair on CUDA: a block has two tiles of places of one sample. Their columns of x and of d = x2 - x are multiplied
// with each other in float, for inputs and for errors; the products of both are added up in double, each block stores
// its sum, and a second launch adds the blocks' sums. Where there is one place, a block has a sample. The definition is
// fastue/ops/ghost_pair/reference.py.
#include "tiles.h"

namespace fastue {
namespace {

// Of a thread's 2 x 2 pairs of places.
struct Gram {
  float xx[2][2], xd[2][2], dx[2][2], dd[2][2];
};

__device__ FASTUE_INLINE Gram fill(Pair& left, Pair& right, const float* x1, const float* x2, int64_t rows, int64_t t,
                                   int64_t u, int64_t places) {
  Gram gram = {};
  for (int64_t k = 0; k < rows; k += kDepth) {
    __syncthreads();
    left.load(x1, x2, k, rows, t, places);
    right.load(x1, x2, k, rows, u, places);
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < kDepth; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x = left.x[i][row_of(r)], d = left.d[i][row_of(r)];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float xu = right.x[i][col_of(c)], du = right.d[i][col_of(c)];
          gram.xx[r][c] = fmaf(x, xu, gram.xx[r][c]);
          gram.xd[r][c] = fmaf(x, du, gram.xd[r][c]);
          gram.dx[r][c] = fmaf(d, xu, gram.dx[r][c]);
          gram.dd[r][c] = fmaf(d, du, gram.dd[r][c]);
        }
      }
    }
  }
  return gram;
}

// n, q and m of two places, in both orders; d is of the inputs, g of the errors.
__device__ FASTUE_INLINE void add_pair(double xx, double xd, double dx, double dd, double yy, double yg, double gy,
                                       double gg, double (&sums)[3]) {
  sums[0] += 2 * (xx * yy);
  sums[1] += (xd + dx) * yy + (xd * yg + dx * gy) + xx * (yg + gy);
  sums[2] += 2 * ((yy + yg + gy + gg) * dd + ((yg + gg) * dx + (gy + gg) * xd) + gg * xx);
}

__global__ void __launch_bounds__(kThreads) ghost_pair_kernel(const __grid_constant__ GhostPair job) {
  __shared__ Pair left, right;
  __shared__ Gram of_inputs[kThreads];  // each thread its own: out of the way while it makes the other
  const int64_t i = blockIdx.x, tiles = tiles_of(job.places), steps = steps_of(job.places);
  const int64_t t = blockIdx.y / steps, step = blockIdx.y % steps, u = (t + step) % tiles;
  const int64_t input = i * job.inputs * job.places, output = i * job.outputs * job.places;
  of_inputs[threadIdx.x] = fill(left, right, job.a + input, job.a2 + input, job.inputs, t, u, job.places);
  const Gram y = fill(left, right, job.e + output, job.e2 + output, job.outputs, t, u, job.places);
  const Gram& x = of_inputs[threadIdx.x];
  double sums[3] = {0, 0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 2; ++c)
      add_pair(x.xx[r][c], x.xd[r][c], x.dx[r][c], x.dd[r][c], y.xx[r][c], y.xd[r][c], y.dx[r][c], y.dd[r][c], sums);
  }
  // a tile with itself has both orders anyway; tiles half of the way apart meet twice
  const double weight = step == 0 || 2 * step == tiles ? 0.5 : 1.0;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const double sum = block_sum(sums[c]);
    if (threadIdx.x == 0) job.sums[(i * tiles * steps + blockIdx.y) * 3 + c] = weight * sum;
  }
}

// A thread for each number of the result.
__global__ void __launch_bounds__(kThreads) ghost_pair_add_kernel(const __grid_constant__ GhostPair job) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= job.batch * 3) return;
  const int64_t pieces = pieces_of(job.places), i = at / 3, c = at % 3;
  double sum = 0;
  for (int64_t p = 0; p < pieces; ++p) sum += job.sums[(i * pieces + p) * 3 + c];
  job.out[at] = sum;
}

__global__ void __launch_bounds__(kThreads) ghost_pair_linear_kernel(const __grid_constant__ GhostPair job) {
  const int64_t i = blockIdx.x;
  const Dots x = dots(job.a + i * job.inputs, job.a2 + i * job.inputs, job.inputs);
  const Dots y = dots(job.e + i * job.outputs, job.e2 + i * job.outputs, job.outputs);
  if (threadIdx.x != 0) return;
  double sums[3] = {0, 0, 0};
  add_pair(x.xx, x.xd, x.xd, x.dd, y.xx, y.xd, y.xd, y.dd, sums);
#pragma unroll
  for (int c = 0; c < 3; ++c) job.out[i * 3 + c] = 0.5 * sums[c];
}

}  // namespace

cudaError_t launch_ghost_pair(const GhostPair& job, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  const unsigned batch = static_cast<unsigned>(job.batch), pieces = static_cast<unsigned>(pieces_of(job.places));
  if (job.places == 1) {
    ghost_pair_linear_kernel<<<batch, kThreads, 0, stream>>>(job);
    return cudaGetLastError();
  }
  if (job.places > 0) ghost_pair_kernel<<<dim3(batch, pieces), kThreads, 0, stream>>>(job);
  const unsigned blocks = static_cast<unsigned>((job.batch * 3 + kThreads - 1) / kThreads);
  ghost_pair_add_kernel<<<blocks, kThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

}  // namespace fastue
