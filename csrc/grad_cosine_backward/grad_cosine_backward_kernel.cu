// grad_cosine_backward on CUDA: a block has a piece of one pair. The definition is
// fastue/ops/grad_cosine_backward/reference.py.
#include "grad_cosine_backward.h"

#include "../common/pieces.h"

namespace fastue {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    grad_cosine_backward_kernel(const __grid_constant__ GradCosineBackward job) {
  const Piece<T> piece(job.list, blockIdx.x);
  const Weights weights(job.grad, job.targets);
  piece.each([&](int64_t i, auto count) {
    constexpr int N = decltype(count)::value;
    const auto g = load_pack<T, N>(piece.g + i), h = load_pack<T, N>(piece.h + i);
    Pack<T, N> v;
#pragma unroll
    for (int k = 0; k < N; ++k) v.v[k] = narrowed<T>(weights.of(to_float(g.v[k]), to_float(h.v[k])));
    Word<sizeof(T) * N> word;
    memcpy(&word, &v, sizeof(word));
    __stwb(reinterpret_cast<Word<sizeof(T) * N>*>(piece.out + i), word);
  });
}

}  // namespace

cudaError_t launch_grad_cosine_backward(const GradCosineBackward& job, cudaStream_t stream) {
  if (job.list.pieces == 0) return cudaSuccess;
  return by_float(job.list.type, [&](auto t) {
    grad_cosine_backward_kernel<decltype(t)><<<job.list.pieces, kThreads, 0, stream>>>(job);
    return cudaGetLastError();
  });
}

}  // namespace fastue
