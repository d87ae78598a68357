// The schemas of the native ops. Each op's code registers itself in csrc/<op>/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastue_native, m) {
  m.def(
      "apply_noise(Tensor x, Tensor noise, Tensor index, Tensor(a!) out, float[] mean, float[] std, float scale,"
      " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()");
  m.def(
      "linf_step(Tensor(a!) noise, Tensor grad, Tensor x, Tensor index, float step, float eps, bool ascend,"
      " float scale, Tensor? mask, Tensor(b!)? out, float[] mean, float[] std,"
      " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()");
  m.def(
      "l2_step(Tensor(a!) noise, Tensor grad, Tensor x, Tensor index, float step, float eps, bool ascend,"
      " Tensor(b!)? out, float[] mean, float[] std,"
      " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()");
  m.def(
      "class_step(Tensor(a!) noise, Tensor grad, Tensor x, Tensor y, float step, float eps, bool ascend,"
      " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()");
  m.def(
      "weight_noise(Tensor base, Tensor table, Tensor draws, Tensor(a!) out, float sigma, int seed, int purpose)"
      " -> ()");
  m.def(
      "conv(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, Tensor(a!) out, int stride,"
      " int padding, bool transposed, bool relu) -> ()");
  m.def(
      "conv3x3(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, Tensor(a!) out,"
      " bool transposed, bool relu) -> ()");
  m.def("conv_weights(Tensor x, Tensor grad, Tensor(a!) out, int stride, int padding) -> ()");
  m.def(
      "diffusion_step(Tensor(a!) x, Tensor? eps, Tensor? y, Tensor? grad, Tensor ids, float alpha_bar, float c0,"
      " float cx, float pull, bool noisy, float push, float sigma, int seed, int iteration, int t) -> ()");
  m.def("grad_cosine(Tensor[] g, Tensor[] h) -> Tensor");
  m.def("grad_cosine_backward(Tensor[] g, Tensor[] h, Tensor grad, Tensor(a!)[] out, bool targets) -> ()");
  m.def("count_correct(Tensor logits, Tensor y, Tensor(a!) counts, int slot) -> ()");
  m.def("ghost_pair(Tensor a, Tensor e, Tensor a2, Tensor e2) -> Tensor");
  m.def("ghost_pair_backward(Tensor grad, Tensor a, Tensor e, Tensor a2, Tensor e2) -> (Tensor, Tensor)");
}
