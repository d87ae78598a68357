// conv3x3 on CPUs with AVX-512: Winograd's F(4x4, 3x3) (Lavin & Gray 2016, arXiv:1509.09308) for NHWC tensors. The
// definition is fastue/ops/conv3x3/reference.py.
//
// Sixteen outputs, a 4x4 tile, take 36 products for each input and output channel instead of 144: y = A'[(G g G') *
// (B' d B)]A, where * is a product of matrices over the channels at each of 36 places. Some tiles at a time are taken
// through all three steps, so that what lies between the steps stays in the L2 cache. The points are 0, +-3/4, +-3/2
// and infinity: all numbers in A and B are exact, and less is lost to rounding than with the usual 0, +-1, +-2.
#include "../common/conv.h"

#if defined(FASTUE_X86_CLONES)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC 12's own headers
#include <immintrin.h>

namespace fastue {
namespace {

constexpr int64_t kSide = 4, kReach = 6, kPlaces = kReach * kReach;  // of a tile, of what it sees
constexpr int64_t kLanes = 16, kRows = 12;                           // of a register; tiles in a small product
constexpr int64_t kPanel = 32, kPanels = 2;                          // output channels of a product; panels at a time

constexpr int64_t kCacheBytes = int64_t{2} << 20;

constexpr float kA = 0.75f, kB = 1.5f, kAA = kA * kA, kBB = kB * kB;

struct Job {
  const float *x, *gate, *residual, *weight, *bias;
  float* out;
  bool relu, streamed;  // streamed: the output is written past the cache
  int64_t batch, height, width, channels, out_channels;
  int64_t by_out, by_in, by_row, by_col;  // strides of the weight
  int64_t tile_rows, tile_cols;           // of a picture

  int64_t blocks() const { return up(channels, kLanes); }
  int64_t panels() const { return up(out_channels, kPanel); }
  int64_t tiles() const { return batch * tile_rows * tile_cols; }
};

// A step between places that is a cache line more than `size`: at a power of two all 36 would compete for one set.
int64_t apart(int64_t size) { return size + kLanes; }

struct Place {  // of a tile: its first row and column of the output
  int64_t picture, row, col;
};

Place place_of(const Job& job, int64_t tile) {
  const int64_t in_picture = tile % (job.tile_rows * job.tile_cols);
  return {tile / (job.tile_rows * job.tile_cols), in_picture / job.tile_cols * kSide, in_picture % job.tile_cols * kSide};
}

__mmask16 lanes(int64_t count) { return count >= kLanes ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }

// G g
FASTUE_V4 FASTUE_INLINE void transform_weights(const __m512 (&g)[3], __m512 (&u)[6]) {
  constexpr float of_0 = 1 / (kAA * kBB), of_a = 1 / (2 * kAA * (kAA - kBB)), of_b = 1 / (2 * kBB * (kBB - kAA));
  const __m512 a = _mm512_mul_ps(g[1], _mm512_set1_ps(kA)), b = _mm512_mul_ps(g[1], _mm512_set1_ps(kB));
  const __m512 aa = _mm512_fmadd_ps(g[2], _mm512_set1_ps(kAA), g[0]);
  const __m512 bb = _mm512_fmadd_ps(g[2], _mm512_set1_ps(kBB), g[0]);
  u[0] = _mm512_mul_ps(g[0], _mm512_set1_ps(of_0));
  u[1] = _mm512_mul_ps(_mm512_add_ps(aa, a), _mm512_set1_ps(of_a));
  u[2] = _mm512_mul_ps(_mm512_sub_ps(aa, a), _mm512_set1_ps(of_a));
  u[3] = _mm512_mul_ps(_mm512_add_ps(bb, b), _mm512_set1_ps(of_b));
  u[4] = _mm512_mul_ps(_mm512_sub_ps(bb, b), _mm512_set1_ps(of_b));
  u[5] = g[2];
}

// B' d
FASTUE_V4 FASTUE_INLINE void transform_source(const __m512 (&d)[6], __m512 (&v)[6]) {
  const __m512 a = _mm512_set1_ps(kA), b = _mm512_set1_ps(kB), aa = _mm512_set1_ps(kAA), bb = _mm512_set1_ps(kBB);
  const __m512 sum = _mm512_set1_ps(kAA + kBB), product = _mm512_set1_ps(kAA * kBB);
  const __m512 even_a = _mm512_fnmadd_ps(bb, d[2], d[4]), odd_a = _mm512_mul_ps(a, _mm512_fnmadd_ps(bb, d[1], d[3]));
  const __m512 even_b = _mm512_fnmadd_ps(aa, d[2], d[4]), odd_b = _mm512_mul_ps(b, _mm512_fnmadd_ps(aa, d[1], d[3]));
  v[0] = _mm512_fmadd_ps(product, d[0], _mm512_fnmadd_ps(sum, d[2], d[4]));
  v[1] = _mm512_add_ps(even_a, odd_a);
  v[2] = _mm512_sub_ps(even_a, odd_a);
  v[3] = _mm512_add_ps(even_b, odd_b);
  v[4] = _mm512_sub_ps(even_b, odd_b);
  v[5] = _mm512_fmadd_ps(product, d[1], _mm512_fnmadd_ps(sum, d[3], d[5]));
}

// A' m
FASTUE_V4 FASTUE_INLINE void transform_products(const __m512 (&m)[6], __m512 (&y)[4]) {
  const __m512 a = _mm512_set1_ps(kA), b = _mm512_set1_ps(kB), aa = _mm512_set1_ps(kAA), bb = _mm512_set1_ps(kBB);
  const __m512 even_a = _mm512_add_ps(m[1], m[2]), odd_a = _mm512_sub_ps(m[1], m[2]);
  const __m512 even_b = _mm512_add_ps(m[3], m[4]), odd_b = _mm512_sub_ps(m[3], m[4]);
  y[0] = _mm512_add_ps(m[0], _mm512_add_ps(even_a, even_b));
  y[1] = _mm512_fmadd_ps(a, odd_a, _mm512_mul_ps(b, odd_b));
  y[2] = _mm512_fmadd_ps(aa, even_a, _mm512_mul_ps(bb, even_b));
  y[3] = _mm512_fmadd_ps(_mm512_set1_ps(kAA * kA), odd_a,
                         _mm512_fmadd_ps(_mm512_set1_ps(kBB * kB), odd_b, m[5]));
}

// One input channel of 16 output channels: to[36] in steps of `step`.
FASTUE_V4 void pack(const Job& job, int64_t out, int64_t in, float* to, int64_t step) {
  const __mmask16 mask = lanes(job.out_channels - out);
  const float* from = job.weight + out * job.by_out + in * job.by_in;
  const __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(static_cast<int>(job.by_out)));
  __m512 half[6][3], line[6];
  for (int j = 0; j < 3; ++j) {
    __m512 g[3];
    for (int i = 0; i < 3; ++i) {
      const float* tap = from + i * job.by_row + j * job.by_col;
      g[i] = job.by_out == 1 ? _mm512_maskz_loadu_ps(mask, tap)
                             : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, tap, 4);
    }
    transform_weights(g, line);
    for (int i = 0; i < 6; ++i) half[i][j] = line[i];
  }
  for (int i = 0; i < 6; ++i) {
    transform_weights(half[i], line);
    for (int j = 0; j < 6; ++j) _mm512_stream_ps(to + (i * 6 + j) * step, line[j]);  // past the cache: it is large
  }
}

// Tiles [first, last): v[36][blocks][tiles][16], the padding being zero: of `nothing`, as many zeros as channels.
template <bool kGate>
FASTUE_V4 void fill(const Job& job, int64_t first, int64_t last, int64_t tiles, float* v, int64_t step,
                    const float* nothing) {
  for (int64_t tile = first; tile < last; ++tile) {
    const Place place = place_of(job, tile);
    const float *pixels[kPlaces], *gates[kPlaces];
    for (int64_t i = 0; i < kReach; ++i)
      for (int64_t j = 0; j < kReach; ++j) {
        const int64_t row = place.row - 1 + i, col = place.col - 1 + j;
        const bool inside = row >= 0 && row < job.height && col >= 0 && col < job.width;
        const int64_t at = ((place.picture * job.height + row) * job.width + col) * job.channels;
        pixels[i * kReach + j] = inside ? job.x + at : nothing;
        if (kGate) gates[i * kReach + j] = inside ? job.gate + at : nothing;
      }
    float* to = v + (tile - first) * kLanes;
    for (int64_t channel = 0; channel < job.channels; channel += kLanes, to += tiles * kLanes) {
      const __mmask16 mask = lanes(job.channels - channel);
      __m512 half[6][6], line[6];
      for (int j = 0; j < 6; ++j) {
        __m512 d[6];
        for (int i = 0; i < 6; ++i) {
          __mmask16 open = mask;
          if constexpr (kGate) {  // all but what is <= 0: NaN passes
            const __m512 gate = _mm512_maskz_loadu_ps(mask, gates[i * 6 + j] + channel);
            open = _mm512_mask_cmp_ps_mask(mask, gate, _mm512_setzero_ps(), _CMP_NLE_UQ);
          }
          d[i] = _mm512_maskz_loadu_ps(open, pixels[i * 6 + j] + channel);
        }
        transform_source(d, line);
        for (int i = 0; i < 6; ++i) half[i][j] = line[i];
      }
      for (int i = 0; i < 6; ++i) {
        transform_source(half[i], line);
        for (int j = 0; j < 6; ++j) _mm512_store_ps(to + (i * 6 + j) * step, line[j]);
      }
    }
  }
}

// kCount tiles times 32 output channels: m[2][tiles][16] of v[blocks][tiles][16] and u[depth][32].
template <int kCount>
FASTUE_V4 void multiply(const float* v, const float* u, int64_t depth, int64_t tiles, float* m) {
  __m512 low[kCount], high[kCount];
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r) low[r] = high[r] = _mm512_setzero_ps();
  for (; depth > 0; depth -= kLanes, v += tiles * kLanes)
    for (int64_t k = 0; k < std::min(depth, kLanes); ++k, u += kPanel) {
      const __m512 u0 = _mm512_load_ps(u), u1 = _mm512_load_ps(u + kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r) {
        const __m512 one = _mm512_set1_ps(v[r * kLanes + k]);
        low[r] = _mm512_fmadd_ps(one, u0, low[r]);
        high[r] = _mm512_fmadd_ps(one, u1, high[r]);
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < kCount; ++r) {
    _mm512_store_ps(m + r * kLanes, low[r]);
    _mm512_store_ps(m + (tiles + r) * kLanes, high[r]);
  }
}

using Multiply = void (*)(const float*, const float*, int64_t, int64_t, float*);
constexpr Multiply kMultiply[kRows + 1] = {nullptr,     multiply<1>, multiply<2>, multiply<3>,  multiply<4>,
                                           multiply<5>, multiply<6>, multiply<7>, multiply<8>,  multiply<9>,
                                           multiply<10>, multiply<11>, multiply<12>};

// Tiles [first, last) of 16 output channels from `channel` on: bias, residual and ReLU of the sums at m[36][...].
FASTUE_V4 void finish(const Job& job, int64_t first, int64_t last, int64_t channel, const float* m, int64_t step) {
  const __mmask16 mask = lanes(job.out_channels - channel);
  const __m512 zero = _mm512_setzero_ps();
  const __m512 bias = job.bias ? _mm512_maskz_loadu_ps(mask, job.bias + channel) : zero;
  for (int64_t tile = first; tile < last; ++tile, m += kLanes) {
    const Place place = place_of(job, tile);
    __m512 half[4][6], column[4];
    for (int j = 0; j < 6; ++j) {
      __m512 line[6];
      for (int i = 0; i < 6; ++i) line[i] = _mm512_load_ps(m + (i * 6 + j) * step);
      transform_products(line, column);
      for (int i = 0; i < 4; ++i) half[i][j] = column[i];
    }
    const int64_t rows = std::min(kSide, job.height - place.row), cols = std::min(kSide, job.width - place.col);
    int64_t at = ((place.picture * job.height + place.row) * job.width + place.col) * job.out_channels + channel;
    for (int i = 0; i < 4 && i < rows; ++i, at += job.width * job.out_channels) {
      __m512 y[4];
      transform_products(half[i], y);
      for (int j = 0; j < 4 && j < cols; ++j) {
        const int64_t to = at + j * job.out_channels;
        __m512 sum = _mm512_add_ps(y[j], bias);
        if (job.residual) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, job.residual + to));
        if (job.relu) sum = _mm512_max_ps(zero, sum);  // the second operand where one is NaN
        if (job.streamed) {
          _mm512_stream_ps(job.out + to, sum);
        } else {
          _mm512_mask_storeu_ps(job.out + to, mask, sum);
        }
      }
    }
  }
}

void run(const Job& job) {
  static thread_local Buffer packed_memory;
  const int64_t depth = job.channels, blocks = job.blocks(), panels = job.panels();
  const int64_t place = apart(depth * kPanel), panel = kPlaces * place;  // sizes in u[panels][36][depth][32]
  float* u = reinterpret_cast<float*>(packed_memory.get(panels * panel * 4));
  torch::stable::parallel_for(0, panels * depth, 16, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t p = k / depth, in = k % depth;
      for (int64_t half = 0; half < 2; ++half) {
        float* to = u + p * panel + in * kPanel + half * kLanes;
        const int64_t out = p * kPanel + half * kLanes;
        if (out < job.out_channels) {
          pack(job, out, in, to, place);
        } else {
          for (int64_t i = 0; i < kPlaces; ++i) std::fill_n(to + i * place, kLanes, 0.0f);
        }
      }
    }
    _mm_sfence();
  });

  // Groups of 4 small products, or 8 where the weights come from beyond the L2 cache, and no thread has more of them.
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads()), all = job.tiles();
  const int64_t most = (panels * panel * 4 > kCacheBytes ? 8 : 4) * kRows;
  const int64_t tiles = up(up(all, up(up(all, most), threads) * threads), kRows) * kRows, groups = up(all, tiles);
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    static thread_local Buffer memory;
    const int64_t step_v = apart(blocks * tiles * kLanes), step_m = apart(kPanels * 2 * tiles * kLanes);
    float* v = reinterpret_cast<float*>(memory.get((kPlaces * (step_v + step_m) + blocks * kLanes) * 4));
    float *m = v + kPlaces * step_v, *nothing = m + kPlaces * step_m;
    std::fill_n(nothing, blocks * kLanes, 0.0f);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * tiles, last = std::min(first + tiles, all);
      job.gate ? fill<true>(job, first, last, tiles, v, step_v, nothing)
               : fill<false>(job, first, last, tiles, v, step_v, nothing);
      for (int64_t p0 = 0; p0 < panels; p0 += kPanels) {
        const int64_t p1 = std::min(p0 + kPanels, panels);
        for (int64_t i = 0; i < kPlaces; ++i)
          for (int64_t p = p0; p < p1; ++p)
            for (int64_t t = 0; t < last - first; t += kRows)
              kMultiply[std::min(kRows, last - first - t)](
                  v + i * step_v + t * kLanes, u + p * panel + i * place, depth, tiles,
                  m + i * step_m + (p - p0) * 2 * tiles * kLanes + t * kLanes);
        for (int64_t half = 0; half < 2 * (p1 - p0); ++half) {
          const int64_t channel = p0 * kPanel + half * kLanes;
          if (channel < job.out_channels) finish(job, first, last, channel, m + half * tiles * kLanes, step_m);
        }
      }
    }
    _mm_sfence();
  });
}

void conv3x3(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> gate,
             std::optional<Tensor> residual, const Tensor& out, bool transposed, bool relu) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "x must be float32");
  Job job{};
  job.x = nhwc<const float>(x, x, "x");
  job.out = nhwc<float>(out, x, "out");
  if (gate) {
    job.gate = nhwc<const float>(*gate, x, "gate");
    STD_TORCH_CHECK(same_shape(*gate, x), "gate and x differ in shape");
  }
  if (residual) {
    job.residual = nhwc<const float>(*residual, x, "residual");
    STD_TORCH_CHECK(same_shape(*residual, out), "residual and out differ in shape");
  }
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == x.scalar_type() && weight.size(2) == 3 &&
                      weight.size(3) == 3, "weight must be [O, I, 3, 3], of the dtype of x");
  STD_TORCH_CHECK(weight.numel() < (int64_t{1} << 28), "weight is too large");
  job.relu = relu;
  job.batch = x.size(0), job.channels = x.size(1), job.height = x.size(2), job.width = x.size(3);
  job.out_channels = out.size(1);
  job.tile_rows = up(job.height, kSide), job.tile_cols = up(job.width, kSide);
  job.by_out = weight.stride(transposed ? 1 : 0), job.by_in = weight.stride(transposed ? 0 : 1);
  job.by_row = weight.stride(2), job.by_col = weight.stride(3);
  job.weight = static_cast<const float*>(weight.data_ptr());
  if (transposed) {  // the same with the kernel turned round
    job.weight += 2 * (job.by_row + job.by_col);
    job.by_row = -job.by_row, job.by_col = -job.by_col;
  }
  STD_TORCH_CHECK(out.size(0) == job.batch && out.size(2) == job.height && out.size(3) == job.width &&
                      weight.size(transposed ? 0 : 1) == job.channels &&
                      weight.size(transposed ? 1 : 0) == job.out_channels,
                  "x, weight and out do not fit");
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->dim() == 1 && bias->is_contiguous() &&
                        bias->size(0) == job.out_channels, "bias must be float32 [O], contiguous");
    job.bias = static_cast<const float*>(bias->data_ptr());
  }
  job.streamed = job.out_channels % kLanes == 0 && reinterpret_cast<uintptr_t>(job.out) % 64 == 0 &&
                 out.numel() * 4 >= kStreamBytes;
  if (out.numel() > 0) run(job);
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) {
  if (__builtin_cpu_supports("x86-64-v4")) m.impl("conv3x3", TORCH_BOX(&fastue::conv3x3));
}
#pragma GCC diagnostic pop
#endif
