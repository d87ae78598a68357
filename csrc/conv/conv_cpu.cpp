// conv on CPUs with AMX: an implicit matrix product on 16 x 16 tiles, for NHWC tensors. The definition is
// fastue/ops/conv/reference.py.
//
// The left factor of a tile product is 16 pictures at one pixel, 32 channels of each (../common/amx.h). The blocks of
// some rows stay in the L2 cache while all output channels are computed from them, 32 at a time; taps that fall on the
// padding are left out. The ReLU's derivative is applied while blocks are filled. A convolution, and the gradient of
// one with respect to its input, differ in which source pixel a tap takes; nothing else here knows which it is.
#include "../common/amx.h"

#if defined(FASTUE_X86_CLONES)

namespace fastue {
namespace {

// 16 output channels from `n` on and 32 inputs from `k` on, as the right factor of a tile product: pairs of inputs.
FASTUE_AMX void pack_tile(const Job& job, int64_t tap, int64_t n, int64_t k, char* to) {
  const int64_t depth = job.depth();
  const int64_t i = tap / job.kw, j = tap % job.kw;
  const int64_t outs = std::min<int64_t>(job.out_channels - n, 16);
  const __mmask16 lanes = static_cast<__mmask16>((1u << outs) - 1);
  const auto at = [&](int64_t input) {  // in elements
    if (!job.unfolded) return n * job.by_out + input * job.by_in + i * job.by_row + j * job.by_col;
    const int64_t place = input / job.channels;
    return n * job.by_out + input % job.channels * job.by_in + place / job.kw * job.by_row +
           place % job.kw * job.by_col;
  };
  const __m512i zero = _mm512_setzero_si512();
  if (job.by_in == 1 && !job.unfolded) {
    const __mmask32 live = depth - k >= 32 ? ~__mmask32{0} : (__mmask32{1} << (depth - k)) - 1;
    __m512i rows[16];
    for (int64_t o = 0; o < 16; ++o)
      rows[o] = o < outs ? _mm512_maskz_loadu_epi16(live, job.weight + 2 * (at(k) + o * job.by_out)) : zero;
    transpose(rows);
    for (int64_t row = 0; row < 16; ++row) _mm512_store_si512(to + row * kRowBytes, rows[row]);
    return;
  }
  for (int64_t row = 0; row < 16; ++row, to += kRowBytes) {
    const int64_t k0 = k + 2 * row, k1 = k0 + 1;
    if (k1 < depth && job.by_out == 1) {
      const __m256i a = _mm256_maskz_loadu_epi16(lanes, job.weight + 2 * at(k0));
      const __m256i b = _mm256_maskz_loadu_epi16(lanes, job.weight + 2 * at(k1));
      const __m512i second = _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16);
      _mm512_store_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(a), second));
    } else {
      alignas(64) uint16_t pairs[32] = {};
      for (int64_t o = 0; o < outs; ++o) {
        if (k0 < depth) std::memcpy(pairs + 2 * o, job.weight + 2 * (at(k0) + o * job.by_out), 2);
        if (k1 < depth) std::memcpy(pairs + 2 * o + 1, job.weight + 2 * (at(k1) + o * job.by_out), 2);
      }
      std::memcpy(to, pairs, 64);
    }
  }
}

// The right factor of 32 output channels is a panel: for each 32 inputs and tap a tile of 16 outputs, or two.
struct Panels {
  int64_t steps, bytes;  // of a panel with two tiles a step
};

int64_t tiles_of(const Job& job, int64_t panel) { return job.out_channels - 32 * panel > 16 ? 2 : 1; }

struct Tap {
  int64_t left, right;  // offsets of its first step in the blocks and in a panel
};

// sums [2][2][16][16]: the products of one output pixel of kLeft x 16 pictures with kRight x 16 channels.
template <int kLeft, int kRight>
FASTUE_AMX void multiply(const Job& job, const char* left, int64_t left_step, const char* right,
                         const Tap* taps, const Tap* end, float* sums) {
  constexpr int64_t kStep = kRight * kTileBytes;
  const int64_t right_step = job.taps() * kStep;
  memory_is_read();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t b = job.blocks(); b > 0; --b, left += left_step, right += right_step)
    for (const Tap* tap = taps; tap < end; ++tap) {
      const char *l = left + tap->left, *r = right + tap->right * kStep;
      const char* next = tap + 1 < end ? left + tap[1].left : left + left_step + taps->left;
      _tile_loadd(4, l, kRowBytes);
      _tile_loadd(6, r, kRowBytes);
      if constexpr (kLeft == 2) _tile_loadd(5, l + kTileBytes, kRowBytes);
      if constexpr (kRight == 2) _tile_loadd(7, r + kTileBytes, kRowBytes);
#pragma GCC unroll 32
      for (int k = 0; k < kLeft * 16; ++k) _mm_prefetch(next + k * kRowBytes, _MM_HINT_T0);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kLeft == 2) _tile_dpbf16ps(2, 5, 6);
      if constexpr (kRight == 2) _tile_dpbf16ps(1, 4, 7);
      if constexpr (kLeft == 2 && kRight == 2) _tile_dpbf16ps(3, 5, 7);
    }
  _tile_stored(0, sums, kRowBytes);
  if constexpr (kRight == 2) _tile_stored(1, sums + 256, kRowBytes);
  if constexpr (kLeft == 2) _tile_stored(2, sums + 512, kRowBytes);
  if constexpr (kLeft == 2 && kRight == 2) _tile_stored(3, sums + 768, kRowBytes);
  memory_is_read();
}

// Bias, residual, ReLU and rounding of the sums of one pixel, 32 channels from `channel` on, of `pictures` pictures.
FASTUE_AMX void write_sums(const Job& job, const float* sums, int64_t picture, int64_t pictures, int64_t pixel,
                           int64_t channel) {
  const int64_t count = std::min<int64_t>(job.out_channels - channel, 32);
  const __mmask32 mask = count == 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
  const __mmask16 low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
  const __m512 zero = _mm512_setzero_ps();
  __m512 bias0 = zero, bias1 = zero;
  if (job.bias) {
    bias0 = _mm512_maskz_loadu_ps(low, job.bias + channel);
    bias1 = _mm512_maskz_loadu_ps(high, job.bias + channel + 16);
  }
  const int64_t next = job.out_height * job.out_width * job.out_channels * 2;
  int64_t offset = picture * next + (pixel * job.out_channels + channel) * 2;
  for (int64_t i = 0; i < pictures; ++i, offset += next) {
    const float* sum = sums + i / 16 * 512 + i % 16 * 16;
    __m512 a = _mm512_add_ps(_mm512_load_ps(sum), bias0), b = _mm512_add_ps(_mm512_load_ps(sum + 256), bias1);
    if (job.residual) {
      const __m512i r = _mm512_maskz_loadu_epi16(mask, job.residual + offset);
      a = _mm512_add_ps(a, _mm512_cvtpbh_ps((__m256bh)_mm512_castsi512_si256(r)));
      b = _mm512_add_ps(b, _mm512_cvtpbh_ps((__m256bh)_mm512_extracti64x4_epi64(r, 1)));
    }
    if (job.relu) {  // the second operand where one is NaN
      a = _mm512_max_ps(zero, a);
      b = _mm512_max_ps(zero, b);
    }
    _mm512_mask_storeu_epi16(job.out + offset, mask, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
}

FASTUE_AMX void multiply_any(int64_t pictures, int64_t tiles, const Job& job, const char* left, int64_t left_step,
                             const char* right, const Tap* taps, const Tap* end, float* sums) {
  if (pictures > 16) {
    tiles == 2 ? multiply<2, 2>(job, left, left_step, right, taps, end, sums)
               : multiply<2, 1>(job, left, left_step, right, taps, end, sums);
  } else {
    tiles == 2 ? multiply<1, 2>(job, left, left_step, right, taps, end, sums)
               : multiply<1, 1>(job, left, left_step, right, taps, end, sums);
  }
}

// Output rows [first, last) of the pictures of `work`, `band` at a time.
FASTUE_AMX void run_rows(const Job& job, const Panels& panels, const char* packed, const Work& work, int64_t first,
                         int64_t last, int64_t band, char* padded) {
  std::vector<Tap> taps;
  std::vector<size_t> ends;  // of the taps of each output pixel of a band
  const int64_t per_pixel = pixel_bytes(job, work), left_step = work.sets * kBlockBytes;
  int64_t filled = 0;  // source rows up to this one have been
  alignas(64) float sums[4 * 256] = {};
  for (int64_t top = first; top < last; top += band) {
    const int64_t bottom = std::min(top + band, last);
    const Rows rows = source_rows(job, top, bottom);
    for (int64_t row = std::max(filled, rows.first); row < rows.last; ++row)
      job.unfolded ? fill_unfolded(job, work, row, padded) : fill_row(job, work, row);
    filled = std::max(filled, rows.last);

    taps.clear();
    ends.clear();
    for (int64_t h = top; h < bottom; ++h)
      for (int64_t w = 0; w < job.out_width; ++w) {
        if (job.unfolded) taps.push_back({(work.slot(h) * job.cols() + w) * per_pixel, 0});
        for (int64_t i = 0; i < job.kh && !job.unfolded; ++i) {
          const int64_t row = job.source(h, i, job.height);
          for (int64_t j = 0; j < job.kw && row >= 0; ++j) {
            const int64_t col = job.source(w, j, job.width);
            if (col >= 0) taps.push_back({(work.slot(row) * job.cols() + col) * per_pixel, i * job.kw + j});
          }
        }
        ends.push_back(taps.size());
      }

    for (int64_t panel = 0; panel * 32 < job.out_channels; ++panel) {
      const int64_t tiles = tiles_of(job, panel);
      const char* right = packed + panel * panels.bytes;
      for (size_t p = 0; p < ends.size(); ++p) {
        const Tap *begin = taps.data() + (p ? ends[p - 1] : 0), *end = taps.data() + ends[p];
        for (int64_t done = 0; done < work.pictures; done += kPictures) {
          const int64_t pictures = std::min(kPictures, work.pictures - done);
          const char* left = work.blocks + done * kRowBytes;
          multiply_any(pictures, tiles, job, left, left_step, right, begin, end, sums);
          const int64_t pixel = top * job.out_width + static_cast<int64_t>(p);
          write_sums(job, sums, work.picture + done, pictures, pixel, 32 * panel);
        }
      }
    }
  }
}

void run(const Job& job) {
  static thread_local Buffer packed_memory;
  Panels panels;
  const int64_t taps = job.taps(), count = up(job.out_channels, 32);
  panels.steps = taps * job.blocks();
  panels.bytes = panels.steps * 2 * kTileBytes;
  char* packed = packed_memory.get(count * panels.bytes);
  torch::stable::parallel_for(0, count * panels.steps, 16, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t panel = k / panels.steps, step = k % panels.steps, tiles = tiles_of(job, panel);
      char* to = packed + panel * panels.bytes + step * tiles * kTileBytes;
      for (int64_t t = 0; t < tiles; ++t)
        pack_tile(job, step % taps, 32 * panel + 16 * t, step / taps * 32, to + t * kTileBytes);
    }
  });

  // Pictures in groups, output rows in as many segments as keep all threads busy, and those in bands.
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t row_bytes = job.cols() * job.blocks() * kBlockBytes;  // of 32 pictures
  const int64_t all_rows = source_rows(job, 0, job.out_height).last;
  const int64_t all = up(job.batch, kPictures), room = kBlocksBytes / std::max<int64_t>(1, row_bytes * all_rows);
  const int64_t sets = std::clamp<int64_t>(room, 1, up(all, threads)), groups = up(all, sets);
  const int64_t segments = std::min(threads / std::gcd(groups, threads), job.out_height);
  const int64_t rows = up(job.out_height, segments);
  int64_t band = rows, ring = 0;
  while ((ring = ring_of(job, band)) * row_bytes * sets > kBlocksBytes && band > 1) band = up(band, 2);
  torch::stable::parallel_for(0, groups * segments, 1, [&](int64_t begin, int64_t end) {
    static thread_local Buffer blocks_memory;
    const UseTiles tiles;
    for (int64_t k = begin; k < end; ++k) {
      Work work{k / segments * sets * kPictures, 0, sets, ring, nullptr};
      work.pictures = std::min(sets * kPictures, job.batch - work.picture);
      const int64_t bytes = blocks_bytes(job, work);
      work.blocks = blocks_memory.get(bytes + padded_bytes(job, work));
      const int64_t first = k % segments * rows;
      run_rows(job, panels, packed, work, first, std::min(first + rows, job.out_height), band, work.blocks + bytes);
    }
  });
}

void conv(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> gate,
          std::optional<Tensor> residual, const Tensor& out, int64_t stride, int64_t padding, bool transposed,
          bool relu) {
  Job job{};
  job.x = nhwc<const char>(x, x, "x");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "x must be bfloat16");
  job.out = nhwc<char>(out, x, "out");
  if (gate) {
    job.gate = nhwc<const char>(*gate, x, "gate");
    STD_TORCH_CHECK(same_shape(*gate, x), "gate and x differ in shape");
  }
  if (residual) {
    job.residual = nhwc<const char>(*residual, x, "residual");
    STD_TORCH_CHECK(same_shape(*residual, out), "residual and out differ in shape");
  }
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == x.scalar_type(),
                  "weight must be [O, I, h, w], of the dtype of x");
  STD_TORCH_CHECK(weight.numel() < (int64_t{1} << 28), "weight is too large");
  job.weight = static_cast<const char*>(weight.data_ptr());
  job.relu = relu;
  job.batch = x.size(0), job.channels = x.size(1), job.height = x.size(2), job.width = x.size(3);
  job.out_channels = out.size(1), job.out_height = out.size(2), job.out_width = out.size(3);
  job.kh = weight.size(2), job.kw = weight.size(3), job.stride = stride, job.padding = padding;
  job.by_out = weight.stride(transposed ? 1 : 0), job.by_in = weight.stride(transposed ? 0 : 1);
  job.by_row = weight.stride(2), job.by_col = weight.stride(3);
  STD_TORCH_CHECK(out.size(0) == job.batch && weight.size(transposed ? 0 : 1) == job.channels &&
                      weight.size(transposed ? 1 : 0) == job.out_channels,
                  "x, weight and out differ in batch size or channels");
  check_sizes(transposed ? out : x, transposed ? x : out, weight, stride, padding);
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 && bias->is_contiguous() &&
                        bias->size(0) == job.out_channels, "bias must be float32 [O], contiguous");
    job.bias = static_cast<const float*>(bias->data_ptr());
  }
  if (out.numel() == 0) return;
  job.transposed = transposed;
  job.unfolded = job.channels < 16 && !gate && !transposed;
  run(job);
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) {
  if (fastue::has_amx()) m.impl("conv", TORCH_BOX(&fastue::conv));
}
#endif
