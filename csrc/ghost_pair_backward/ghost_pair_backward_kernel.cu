// ghost_pair_backward on CUDA: a block has a tile of places t of one sample's x2. For each tile u of places the Gram
// matrices of y and of d = y2 - y at u with y2 at t are made, scaled, multiplied by x and x2 - x at u, and forgotten.
// Where there is one place, a block has a sample. The definition is fastue/ops/ghost_pair_backward/reference.py.
#include "ghost_pair_backward.h"

#include "../ghost_pair/tiles.h"

namespace fastue {
namespace {

static_assert(kDepth == kSide);

// near [u][t] = y.y2 and far = d.y2 of all rows, then q near + 2m far and 2m (near + far).
__device__ FASTUE_INLINE void fill(float (&near)[kTilePlaces][kTilePlaces], float (&far)[kTilePlaces][kTilePlaces],
                                   Pair& left, Pair& right, const GhostPairBackward& job, int64_t i, int64_t u,
                                   int64_t t) {
  const float *y = job.y + i * job.others * job.places, *y2 = job.y2 + i * job.others * job.places;
  float of_y[2][2] = {}, of_d[2][2] = {};
  for (int64_t k = 0; k < job.others; k += kDepth) {
    __syncthreads();
    left.load(y, y2, k, job.others, u, job.places);
    right.load(y2, y2, k, job.others, t, job.places);
    __syncthreads();
#pragma unroll 4
    for (int j = 0; j < kDepth; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float shown = right.x[j][col_of(c)];
          of_y[r][c] = fmaf(left.x[j][row_of(r)], shown, of_y[r][c]);
          of_d[r][c] = fmaf(left.d[j][row_of(r)], shown, of_d[r][c]);
        }
      }
    }
  }
  const double q = job.grad[i * 3 + 1], m2 = 2 * job.grad[i * 3 + 2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const double v = of_y[r][c], d = of_d[r][c];
      near[row_of(r)][col_of(c)] = static_cast<float>(q * v + m2 * d);
      far[row_of(r)][col_of(c)] = static_cast<float>(m2 * (v + d));
    }
  }
}

__global__ void __launch_bounds__(kThreads) ghost_pair_backward_kernel(const __grid_constant__ GhostPairBackward job) {
  __shared__ Pair left, right;
  __shared__ float near[kTilePlaces][kTilePlaces], far[kTilePlaces][kTilePlaces];
  const int64_t i = blockIdx.x, t = blockIdx.y, at = i * job.rows * job.places;
  for (int64_t u = 0; u < tiles_of(job.places); ++u) {
    __syncthreads();
    fill(near, far, left, right, job, i, u, t);
    for (int64_t k = 0; k < job.rows; k += kDepth) {
      __syncthreads();
      left.load(job.x + at, job.x2 + at, k, job.rows, u, job.places);
      __syncthreads();
      const int64_t row = k + row_of(0);
      float v[2] = {};
#pragma unroll 8
      for (int j = 0; j < kTilePlaces; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          v[c] = fmaf(left.x[row_of(0)][j], near[j][col_of(c)], v[c]);
          v[c] = fmaf(left.d[row_of(0)][j], far[j][col_of(c)], v[c]);
        }
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t place = t * kTilePlaces + col_of(c);
        if (row >= job.rows || place >= job.places) continue;
        float& out = job.out[at + row * job.places + place];
        out = u == 0 ? v[c] : out + v[c];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    ghost_pair_backward_linear_kernel(const __grid_constant__ GhostPairBackward job) {
  const int64_t i = blockIdx.x, at = i * job.rows;
  const Dots y = dots(job.y + i * job.others, job.y2 + i * job.others, job.others);
  const double q = job.grad[i * 3 + 1], m2 = 2 * job.grad[i * 3 + 2];
  const float near = static_cast<float>(q * (y.xx + y.xd) + m2 * (y.xd + y.dd));
  const float far = static_cast<float>(m2 * (y.xx + (2 * y.xd + y.dd)));
  for (int64_t k = threadIdx.x; k < job.rows; k += kThreads) {
    const float x = job.x[at + k];
    job.out[at + k] = x * near + (job.x2[at + k] - x) * far;
  }
}

}  // namespace

cudaError_t launch_ghost_pair_backward(const GhostPairBackward& job, cudaStream_t stream) {
  if (job.batch == 0 || job.rows == 0 || job.places == 0) return cudaSuccess;
  const unsigned batch = static_cast<unsigned>(job.batch);
  if (job.places == 1) {
    ghost_pair_backward_linear_kernel<<<batch, kThreads, 0, stream>>>(job);
  } else {
    const dim3 grid(batch, static_cast<unsigned>(tiles_of(job.places)));
    ghost_pair_backward_kernel<<<grid, kThreads, 0, stream>>>(job);
  }
  return cudaGetLastError();
}

}  // namespace fastue
