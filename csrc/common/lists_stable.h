// Between lists of tensors and CUDA launches.
#pragma once

#include "lists.h"
#include "lists_cuda.h"
#include "stable_cuda.h"

namespace fastue {

// The launches that a list takes: as many tensors in each as go by value.
inline std::vector<Tensors> launches_of(const Lists& lists) {
  std::vector<Tensors> found;
  for (const Pair& pair : lists.pairs) {
    const int64_t pieces = (pair.size + kPiece - 1) / kPiece;
    STD_TORCH_CHECK(pieces < (int64_t{1} << 30), "a tensor has too many elements for one launch: ", pair.size);
    if (found.empty() || found.back().tensors == kTensors || found.back().pieces + pieces >= (int64_t{1} << 31)) {
      found.emplace_back();
      found.back().type = lists.type;
    }
    Tensors& to = found.back();
    const int i = to.tensors++;
    to.g[i] = pair.g, to.h[i] = pair.h, to.out[i] = pair.out, to.size[i] = pair.size;
    to.first[i] = to.pieces;
    to.pieces += static_cast<uint32_t>(pieces);
  }
  return found;
}

}  // namespace fastue
