// ghost_pair on CUDA: what the launcher is told. Raw pointers only.
#pragma once

#include "../common/device.h"

namespace fastue {

struct GhostPair {
  const float *a, *e, *a2, *e2;
  double* sums;  // [B, pieces, 3]
  double* out;   // [B, 3]
  int64_t batch, inputs, outputs, places;
};

constexpr int64_t kTilePlaces = 32;  // a block has 16 x 16 threads, a thread 2 x 2 pairs of places

FASTUE_HD inline int64_t tiles_of(int64_t places) { return (places + kTilePlaces - 1) / kTilePlaces; }
// Of a sample: each tile meets itself and the half of the tiles behind it, around the end.
FASTUE_HD inline int64_t steps_of(int64_t places) { return tiles_of(places) / 2 + 1; }
FASTUE_HD inline int64_t pieces_of(int64_t places) { return tiles_of(places) * steps_of(places); }

cudaError_t launch_ghost_pair(const GhostPair& job, cudaStream_t stream);

}  // namespace fastue
