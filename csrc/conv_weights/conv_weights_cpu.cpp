// conv_weights on CPUs with AMX. The definition is fastue/ops/conv_weights/reference.py.
//
// What is summed over are pixels and pictures. The blocks of ../common/amx.h, [picture][32 channels], are turned into
// the factors of a tile product over 32 pictures: those of x transposed, those of the gradient as pairs of pictures.
// All threads fill the blocks of some rows of some pictures, then share out the sums, one for each (32 channels of x,
// 32 of the gradient, tap): so the order of a sum does not depend on the number of threads.
#include "../common/amx.h"

#if defined(FASTUE_X86_CLONES)

namespace fastue {
namespace {

constexpr int64_t kPixels = 128;  // whose blocks a sum takes at once, about: 2 x 256 KiB

// A block [32 pictures][32 channels] to two tiles of 16 channels, [16 pairs of pictures][16][2], or, for the left
// factor, [16][32 pictures]. Pictures from `valid` on are taken for zero.
FASTUE_AMX void convert(char* block, int64_t valid, bool left) {
  __m512i rows[32];
  for (int64_t i = 0; i < 32; ++i)
    rows[i] = i < valid ? _mm512_load_si512(block + i * kRowBytes) : _mm512_setzero_si512();
  alignas(64) uint16_t order[2][32];
  for (uint16_t n = 0; n < 16; ++n) {
    order[0][2 * n] = n, order[0][2 * n + 1] = n + 32;
    order[1][2 * n] = n + 16, order[1][2 * n + 1] = n + 48;
  }
  for (int64_t t = 0; t < 2; ++t, block += kTileBytes) {
    const __m512i take = _mm512_load_si512(order[t]);
    __m512i tile[16];
    for (int64_t i = 0; i < 16; ++i) tile[i] = _mm512_permutex2var_epi16(rows[2 * i], take, rows[2 * i + 1]);
    if (left) transpose(tile);
    for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(block + i * kRowBytes, tile[i]);
  }
}

FASTUE_AMX void fill(const Job& job, const Work& work, int64_t row, bool left) {
  if (job.unfolded) {
    static thread_local Buffer padded;
    fill_unfolded(job, work, row, padded.get(padded_bytes(job, work)));
  } else {
    fill_row(job, work, row);
  }
  char* block = work.blocks + work.slot(row) * job.cols() * pixel_bytes(job, work);
  for (int64_t k = 0; k < job.cols() * job.blocks(); ++k)
    for (int64_t q = 0; q < work.sets; ++q, block += kBlockBytes)
      convert(block, std::clamp<int64_t>(work.pictures - q * kPictures, 0, kPictures), left);
}

struct Pair {
  int64_t left, right;  // offsets of a pixel of x and of the output pixel it adds to
};

// sums [2][2][16][16] += products over all pairs and 32 x `sets` pictures, summed on their own first.
FASTUE_AMX void add_products(const char* left, const char* right, const Pair* pairs, const Pair* end, int64_t sets,
                             float* sums) {
  memory_is_read();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (const Pair* pair = pairs; pair < end; ++pair) {
    const char *l = left + pair->left, *r = right + pair->right;
    for (int64_t q = 0; q < sets; ++q, l += kBlockBytes, r += kBlockBytes) {
      _tile_loadd(4, l, kRowBytes);
      _tile_loadd(6, r, kRowBytes);
      _tile_loadd(7, r + kTileBytes, kRowBytes);
      _tile_loadd(5, l + kTileBytes, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  alignas(64) float part[4 * 256];
  _tile_stored(0, part, kRowBytes);
  _tile_stored(1, part + 256, kRowBytes);
  _tile_stored(2, part + 512, kRowBytes);
  _tile_stored(3, part + 768, kRowBytes);
  memory_is_read();
  for (int64_t i = 0; i < 4 * 256; i += 16)
    _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(part + i)));
}

// One sum of 32 channels of x (or places of an unfolded neighbourhood) by 32 of the gradient, to out [O, C, kh, kw].
FASTUE_AMX void write_sum(const Job& job, const Tensor& out, float* to, const float* sums, int64_t tap, int64_t in,
                          int64_t o) {
  const int64_t by_out = out.stride(0), by_in = out.stride(1), by_row = out.stride(2), by_col = out.stride(3);
  const int64_t outs = std::min<int64_t>(32, job.out_channels - o), ins = std::min<int64_t>(32, job.depth() - in);
  if (!job.unfolded && by_in == 1) {
    float* place = to + o * by_out + in + tap / job.kw * by_row + tap % job.kw * by_col;
    for (int64_t t = 0; t < 4; ++t) {
      const int64_t first = t / 2 * 16, count = std::clamp<int64_t>(ins - first, 0, 16);
      const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
      __m512i tile[16];
      for (int64_t i = 0; i < 16; ++i) tile[i] = _mm512_load_si512(sums + t * 256 + i * 16);
      transpose(tile);
      for (int64_t i = t % 2 * 16; i < std::min(outs, t % 2 * 16 + 16); ++i)
        _mm512_mask_storeu_epi32(place + i * by_out + first, lanes, tile[i % 16]);
    }
    return;
  }
  for (int64_t i = 0; i < ins; ++i) {
    const int64_t place = job.unfolded ? (in + i) / job.channels : tap;
    const int64_t channel = job.unfolded ? (in + i) % job.channels : in + i;
    for (int64_t k = 0; k < outs; ++k)
      to[(o + k) * by_out + channel * by_in + place / job.kw * by_row + place % job.kw * by_col] =
          sums[(i / 16 * 2 + k / 16) * 256 + i % 16 * 16 + k % 16];
  }
}

void conv_weights(const Tensor& x, const Tensor& grad, const Tensor& out, int64_t stride, int64_t padding) {
  Job job{}, of_grad{};
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "x must be bfloat16");
  STD_TORCH_CHECK(out.scalar_type() == ScalarType::Float && out.dim() == 4, "out must be float32 [O, C, h, w]");
  job.x = nhwc<const char>(x, x, "x");
  job.batch = x.size(0), job.channels = x.size(1), job.height = x.size(2), job.width = x.size(3);
  of_grad.x = nhwc<const char>(grad, x, "grad");
  of_grad.batch = grad.size(0), of_grad.channels = grad.size(1);
  of_grad.height = grad.size(2), of_grad.width = of_grad.out_width = grad.size(3);
  job.out_channels = grad.size(1), job.out_height = grad.size(2), job.out_width = grad.size(3);
  job.kh = out.size(2), job.kw = out.size(3), job.stride = stride, job.padding = padding;
  STD_TORCH_CHECK(of_grad.batch == job.batch && out.size(0) == job.out_channels && out.size(1) == job.channels,
                  "x, grad and out differ in batch size or channels");
  check_sizes(x, grad, out, stride, padding);
  if (out.numel() == 0) return;
  job.unfolded = job.channels < 16;

  static thread_local Buffer sums_memory, left_memory, right_memory;
  const int64_t ins = job.blocks(), outs = of_grad.blocks(), taps = job.taps(), all = ins * outs * taps;
  float* sums = reinterpret_cast<float*>(sums_memory.get(all * 4 * kTileBytes));
  std::memset(sums, 0, all * 4 * kTileBytes);

  const int64_t all_sets = std::max<int64_t>(1, up(job.batch, kPictures)), area = job.out_height * job.out_width;
  const int64_t sets = std::clamp<int64_t>(kPixels / area, 1, all_sets);
  const int64_t band = std::clamp<int64_t>(kPixels / (job.out_width * sets), 1, job.out_height);
  const int64_t ring = ring_of(job, band);
  std::vector<Pair> pairs;
  std::vector<size_t> ends;  // of the pairs of each tap
  for (int64_t picture = 0; picture < job.batch; picture += sets * kPictures) {
    Work left{picture, std::min(sets * kPictures, job.batch - picture), sets, ring, nullptr};
    Work right = left;
    right.ring = band;
    left.blocks = left_memory.get(blocks_bytes(job, left));
    right.blocks = right_memory.get(blocks_bytes(of_grad, right));
    int64_t filled = 0;
    for (int64_t top = 0; top < job.out_height; top += band) {
      const int64_t bottom = std::min(top + band, job.out_height);
      const Rows rows = source_rows(job, top, bottom);
      const int64_t from = std::max(filled, rows.first), fresh = std::max<int64_t>(rows.last - from, 0);
      filled = std::max(filled, rows.last);
      torch::stable::parallel_for(0, fresh + bottom - top, 1, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k)
          k < fresh ? fill(job, left, from + k, true) : fill(of_grad, right, top + k - fresh, false);
      });
      pairs.clear();
      ends.clear();
      const int64_t left_pixel = pixel_bytes(job, left), right_pixel = pixel_bytes(of_grad, right);
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t h = top; h < bottom; ++h)
          for (int64_t w = 0; w < job.out_width; ++w) {
            const int64_t row = job.unfolded ? h : job.source(h, tap / job.kw, job.height);
            const int64_t col = job.unfolded ? w : job.source(w, tap % job.kw, job.width);
            if (row < 0 || col < 0) continue;
            const int64_t from = left.slot(row) * job.cols() + col, with = right.slot(h) * job.out_width + w;
            pairs.push_back({from * left_pixel, with * right_pixel});
          }
        ends.push_back(pairs.size());
      }
      torch::stable::parallel_for(0, all, 1, [&](int64_t begin, int64_t end) {
        const UseTiles tiles;
        for (int64_t k = begin; k < end; ++k) {
          const int64_t tap = k % taps, o = k / taps % outs, in = k / taps / outs;
          add_products(left.blocks + in * sets * kBlockBytes, right.blocks + o * sets * kBlockBytes,
                       pairs.data() + (tap ? ends[tap - 1] : 0), pairs.data() + ends[tap], sets, sums + k * 4 * 256);
        }
      });
    }
  }
  float* to = static_cast<float*>(out.data_ptr());
  torch::stable::parallel_for(0, all, 8, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      write_sum(job, out, to, sums + k * 4 * 256, k % taps, k / taps / outs * 32, k / taps % outs * 32);
  });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) {
  if (fastue::has_amx()) m.impl("conv_weights", TORCH_BOX(&fastue::conv_weights));
}
#endif
