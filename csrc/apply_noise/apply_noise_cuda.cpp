// apply_noise: tensors to pointers. A row out of range gives NaN: looking here would stop the device.
#include "../common/stable_cuda.h"
#include "apply_noise.h"

namespace fastue {
namespace {

void apply_noise(const Tensor& x, const Tensor& noise, const Tensor& index, const Tensor& out,
                 const std::vector<double>& mean, const std::vector<double>& std, double scale,
                 const std::optional<Tensor>& ids, int64_t seed, int64_t epoch, int64_t pad, bool flip, int64_t grain) {
  ApplyNoise job{};
  job.x = batch(x, x, "x");
  job.view = view_of(x, ids, seed, epoch, pad, flip, grain);
  job.noise = bank(noise, x, job.view);
  job.out = batch(out, x, "out");
  STD_TORCH_CHECK(job.x.type == Type::u8 && (job.noise.type == Type::f32 || job.noise.type == Type::s8) &&
                      job.out.type != Type::u8 && job.out.type != Type::s8,
                  "x must be uint8, noise float32 or int8, out float32, bfloat16 or float16");
  job.channels = static_cast<uint32_t>(x.size(1));
  job.area = area_of(x, x.size(0));
  job.index = numbers(index, x, "index");
  job.batch = x.size(0);
  job.rows = noise.size(0);
  job.scale = static_cast<float>(scale);
  job.norm = normalisation(mean, std, x.size(1));
  on_stream_of(x, [&](cudaStream_t stream) { return launch_apply_noise(job, stream); });
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CUDA, m) { m.impl("apply_noise", TORCH_BOX(&fastue::apply_noise)); }
