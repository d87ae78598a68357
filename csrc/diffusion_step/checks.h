// What diffusion_step is told, on the CPU and on CUDA: tensors to pointers, numbers to float32.
#pragma once

#include "../common/stable.h"
#include "diffusion_step.h"

namespace fastue {

inline DiffusionStep diffusion_step_of(const Tensor& x, const std::optional<Tensor>& eps,
                                       const std::optional<Tensor>& y, const std::optional<Tensor>& grad,
                                       const Tensor& ids, double alpha_bar, double c0, double cx, double pull,
                                       bool noisy, double push, double sigma, int64_t seed, int64_t iteration,
                                       int64_t t) {
  DiffusionStep job{};
  job.x = batch(x, x, "x");
  if (eps.has_value()) job.eps = batch(*eps, x, "eps");
  if (y.has_value()) job.y = batch(*y, x, "y");
  if (grad.has_value()) job.grad = batch(*grad, x, "grad");
  STD_TORCH_CHECK(job.x.type == Type::f32 && job.eps.type != Type::s8 && job.eps.type != Type::u8 &&
                      (!y.has_value() || job.y.type == Type::u8) && job.grad.type == Type::f32,
                  "x and grad must be float32, eps float32, bfloat16 or float16, y uint8");
  STD_TORCH_CHECK(y.has_value() || !noisy, "noisy needs y");
  const int64_t area = x.size(2) * x.size(3);
  STD_TORCH_CHECK(area * x.size(1) < (int64_t{1} << 31), "a picture has too many pixels: ", area);
  STD_TORCH_CHECK(iteration >= 0 && iteration < (1 << 8) && t >= 0 && t < (1 << 16),
                  "iteration must be in [0, 256), t in [0, 65536)");
  job.ids = numbers(ids, x, "ids");
  job.batch = x.size(0);
  job.channels = static_cast<uint32_t>(x.size(1));
  job.area = static_cast<uint32_t>(area);
  job.a = static_cast<float>(std::sqrt(1 / alpha_bar));
  job.b = static_cast<float>(std::sqrt(1 / alpha_bar - 1));
  job.keep = static_cast<float>(std::sqrt(alpha_bar));
  job.spread = static_cast<float>(std::sqrt(1 - alpha_bar));
  job.c0 = static_cast<float>(c0);
  job.cx = static_cast<float>(cx);
  job.pull = static_cast<float>(pull);
  job.push = static_cast<float>(push);
  job.sigma = static_cast<float>(sigma);
  job.noisy = noisy;
  job.seed = static_cast<uint64_t>(seed);
  job.own = picture_use(eps.has_value() ? kPurposeDiffusionStep : kPurposeDiffusionStart, iteration, t);
  job.copy = picture_use(kPurposeDiffusionCopy, iteration, t);
  return job;
}

}  // namespace fastue
