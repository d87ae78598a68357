// weight_noise on the CPU: one pass, tile by tile; a tile is 24 blocks of parameters. A value depends on its place and
// its draw alone, so neither on threads nor on tiles. The definition is fastue/ops/weight_noise/reference.py.
#include "../common/philox_v4.h"
#include "checks.h"

namespace fastue {
namespace {

static_assert(kTile % kBlock == 0);

struct Job {
  const float* base;
  const int64_t *table, *draws;
  Pictures out;
  Shape shape;  // one channel of D pixels
  float sigma;
  uint64_t seed;
  uint32_t purpose;
  bool stream;
  void (*make_words)(const Job& job, const int64_t* table, int64_t blocks, uint32_t draw, uint32_t* words);
};

// Where a block's words lie: word i of lane l at 16 i + l, which is the place of the element made from it.
FASTUE_CLONES void make_words(const Job& job, const int64_t* table, int64_t blocks, uint32_t draw,
                              uint32_t* __restrict words) {
  const uint64_t seed = job.seed;
  const uint32_t purpose = job.purpose;
  for (int64_t b = 0; b < blocks; ++b, words += kBlock)
    for (int lane = 0; lane < kLanes; ++lane) {
      const Words w = philox(weight_counter(table[b], static_cast<uint32_t>(lane), draw, purpose), seed);
      for (int i = 0; i < 4; ++i) words[lane + kLanes * i] = w.v[i];
    }
}

#if defined(FASTUE_X86_CLONES)
// The same with AVX-512, three blocks at a time: even lanes and odd ones apart, all of it in registers.
constexpr int kTogether = 3;
static_assert(kTile % (kTogether * kBlock) == 0);  // the words of a tile have room for whole threes

FASTUE_V4 void make_words_v4(const Job& job, const int64_t* table, int64_t blocks, uint32_t draw, uint32_t* words) {
  constexpr int kHalves = 2 * kTogether;
  const __m512i even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0), one = _mm512_set1_epi64(1);
  for (int64_t b = 0; b < blocks; b += kTogether, words += kTogether * kBlock) {
    __m512i c[4][kHalves];
    for (int h = 0; h < kHalves; ++h) {
      const Words w = weight_counter(table[std::min(b + h / 2, blocks - 1)], 0, draw, job.purpose);
      for (int i = 0; i < 4; ++i) c[i][h] = _mm512_set1_epi64(w.v[i]);
      c[0][h] = _mm512_add_epi64(c[0][h], h % 2 ? _mm512_add_epi64(even, one) : even);
    }
    philox_v4(c, job.seed);
    for (int h = 0; h < kHalves; h += 2)
      for (int i = 0; i < 4; ++i)
        _mm512_storeu_si512(words + h / 2 * kBlock + kLanes * i, joined_v4(c[i][h], c[i][h + 1]));
  }
}
#endif

// v = base + sigma * z.
FASTUE_CLONES void add_normals(const uint32_t* __restrict words, const float* __restrict base, float sigma,
                               int64_t elements, float* __restrict v) {
  for (int64_t at = 0; at < elements; at += kBlock)
    for (int64_t e = at; e < at + kLanes; ++e) {
      const Normals z = normals({{words[e], words[e + kLanes], words[e + 2 * kLanes], words[e + 3 * kLanes]}});
      for (int i = 0; i < 4; ++i) v[e + kLanes * i] = base[e + kLanes * i] + sigma * z.v[i];
    }
}

void add_noise(const Job& job, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[kTile];
  alignas(64) float v[kTile];
  for (int64_t j = begin; j < end; ++j) {
    const Tile t = job.shape.tile(j / job.shape.tiles(), j % job.shape.tiles());
    const int64_t* table = job.table + t.first / kBlock;
    const uint32_t draw = static_cast<uint32_t>(job.draws[t.row]);
    job.make_words(job, table, t.elements / kBlock, draw, words);
    add_normals(words, job.base + t.first, job.sigma, t.elements, v);
    store(v, job.out, job.shape, t, job.stream);
  }
  if (job.stream) fence();
}

void weight_noise(const Tensor& base, const Tensor& table, const Tensor& draws, const Tensor& out, double sigma,
                  int64_t seed, int64_t purpose) {
  Job job{};
  const int64_t size = check_weights(base, table, draws, out);
  job.base = base.const_data_ptr<float>();
  job.table = table.const_data_ptr<int64_t>();
  job.draws = checked_rows(draws, out, int64_t{1} << 32, "draws");
  uint64_t high = 0;
  for (int64_t i = 0; i < size / kBlock; ++i) high |= static_cast<uint64_t>(job.table[i]) & 0xF0000000u;
  STD_TORCH_CHECK(high == 0, "table holds a block outside of [0, 2^28)");
  job.out = {out.data_ptr(), type_of(out, "out"), false};
  job.shape = {1, size, false};
  job.sigma = static_cast<float>(sigma);
  job.seed = static_cast<uint64_t>(seed);
  job.purpose = static_cast<uint32_t>(purpose);
  job.stream = out.numel() * static_cast<int64_t>(job.out.type == Type::f32 ? 4 : 2) >= kStreamBytes;
  job.make_words = make_words;
#if defined(FASTUE_X86_CLONES)
  if (__builtin_cpu_supports("x86-64-v4")) job.make_words = make_words_v4;
#endif
  parallel_tiles(draws.size(0) * job.shape.tiles(), [&](int64_t begin, int64_t end) { add_noise(job, begin, end); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("weight_noise", TORCH_BOX(&fastue::weight_noise)); }
