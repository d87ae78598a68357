// Stands in for CUDA's header of that name: the types that glue and kernels use, and the words that g++ does not know.
#pragma once

#include <cstdint>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// One copy for all threads of a block, which take turns on one thread of the CPU. All such variables of the library
// lie together in its thread-local segment, where the runtime finds them to poison them before each block.
#define __shared__ thread_local

#define FASTUE_VECTOR2(name, T) \
  struct alignas(2 * sizeof(T)) name { T x, y; }; \
  inline name make_##name(T x, T y) { return {x, y}; }
#define FASTUE_VECTOR4(name, T) \
  struct alignas(4 * sizeof(T)) name { T x, y, z, w; }; \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
FASTUE_VECTOR2(float2, float)
FASTUE_VECTOR2(int2, int)
FASTUE_VECTOR2(uint2, unsigned)
FASTUE_VECTOR2(ushort2, unsigned short)
FASTUE_VECTOR2(uchar2, unsigned char)
FASTUE_VECTOR4(float4, float)
FASTUE_VECTOR4(int4, int)
FASTUE_VECTOR4(uint4, unsigned)
FASTUE_VECTOR4(ushort4, unsigned short)
FASTUE_VECTOR4(uchar4, unsigned char)
FASTUE_VECTOR4(char4, signed char)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorIllegalAddress = 700,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719,
};
using cudaStream_t = struct CUstream_st*;

extern "C" cudaError_t cudaGetLastError();
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  __builtin_memset(at, value, bytes);
  return cudaSuccess;
}
