// Stands in for CUDA's header of that name, which nvcc includes by itself: what a kernel may call, and how it is
// launched. A thread of a block is a fiber; a barrier leaves it until all others are there (runtime.cpp).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "cuda_runtime_api.h"

using std::isfinite, std::max, std::min, std::sqrt;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_host {

enum class Wait { none, threads, warp, ballot, shuffle };
// Leave this thread until those who have to be there are. Of a block or ballot the mask or number of true values
// comes back, of a shuffle the value of lane `from`.
uint64_t wait(Wait what, int line, unsigned mask = 0, uint64_t value = 0, unsigned from = 0);
unsigned lane();

template <class T>
T shuffle(unsigned mask, T value, int from, int width, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const int own = static_cast<int>(lane()), first = own & ~(width - 1);
  if (from < first || from >= first + width) from = own;  // beyond its group a thread gets its own value
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = wait(Wait::shuffle, line, mask, bits, static_cast<unsigned>(from));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// An instance of a kernel: enrolled when the library is loaded, so that those never launched are known, too.
struct Count {
  std::string name;
  int64_t launches = 0;
  explicit Count(const std::string& function);
};
template <auto kernel>
struct Instance {
  static const char* function() { return __PRETTY_FUNCTION__; }  // ... [with auto kernel = name<...>]
  static inline Count count{function()};
};

bool allowed(dim3 grid, dim3 block, size_t dynamic);  // by the limits of CUDA, and no dynamic shared memory
void run(const std::string& name, dim3 grid, dim3 block, const std::function<void()>& thread);

// What `kernel<<<grid, block, 0, stream>>>(...)` is rewritten to: launch<kernel>(grid, block, 0, stream)(...).
template <auto kernel>
auto launch(dim3 grid, dim3 block, size_t dynamic = 0, cudaStream_t = nullptr) {
  return [=]<class... Args>(const Args&... args) {
    Count& count = Instance<kernel>::count;
    ++count.launches;
    if (allowed(grid, block, dynamic)) run(count.name, grid, block, [&] { kernel(args...); });
  };
}

}  // namespace cuda_host

inline void __syncthreads(int line = __builtin_LINE()) { cuda_host::wait(cuda_host::Wait::threads, line); }
inline int __syncthreads_count(int v, int line = __builtin_LINE()) {
  return static_cast<int>(cuda_host::wait(cuda_host::Wait::threads, line, 0, v != 0));
}
inline int __syncthreads_or(int v, int line = __builtin_LINE()) { return __syncthreads_count(v, line) != 0; }
inline int __syncthreads_and(int v, int line = __builtin_LINE()) { return __syncthreads_count(!v, line) == 0; }

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  cuda_host::wait(cuda_host::Wait::warp, line, mask);
}
inline unsigned __ballot_sync(unsigned mask, int v, int line = __builtin_LINE()) {
  return static_cast<unsigned>(cuda_host::wait(cuda_host::Wait::ballot, line, mask, v != 0));
}
inline int __any_sync(unsigned mask, int v, int line = __builtin_LINE()) { return __ballot_sync(mask, v, line) != 0; }
inline int __all_sync(unsigned mask, int v, int line = __builtin_LINE()) { return __ballot_sync(mask, !v, line) == 0; }
template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32, int line = __builtin_LINE()) {
  const int first = static_cast<int>(cuda_host::lane()) & ~(width - 1);
  return cuda_host::shuffle(mask, v, first + (from & (width - 1)), width, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
  return cuda_host::shuffle(mask, v, static_cast<int>(cuda_host::lane() + by), width, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
  return cuda_host::shuffle(mask, v, static_cast<int>(cuda_host::lane()) - static_cast<int>(by), width, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32, int line = __builtin_LINE()) {
  return cuda_host::shuffle(mask, v, static_cast<int>(cuda_host::lane()) ^ by, width, line);
}

// Threads take turns, so that a plain addition is atomic, and what is written is seen.
inline void __threadfence() {}
template <class T>
T atomicAdd(T* at, T v) {
  const T old = *at;
  *at += v;
  return old;
}
template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldca(const T* at) {
  return *at;
}
template <class T>
void __stwb(T* at, T v) {
  *at = v;
}
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
