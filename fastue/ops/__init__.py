"""The ops, for people: methods call these and name no backend. Each stands in its room,
fastue/ops/<op>/.

Importing this module registers `torch.ops.fastue.*`; it loads neither Triton nor the compiled
library.

Layouts: every picture-shaped tensor may be contiguous or channels_last, each on its own; when all
have the same layout nothing is rearranged. Banks and outputs of any other layout are an error,
inputs of any other layout are copied.
"""

import torch

from fastue.core import opspec
from fastue.core.opspec import BackendError as BackendError
from fastue.core.opspec import use_backend as use_backend
from fastue.ops._keyed import WEIGHTS_ATTACK as WEIGHTS_ATTACK
from fastue.ops._keyed import WEIGHTS_CERTIFY as WEIGHTS_CERTIFY
from fastue.ops._keyed import WEIGHTS_NOISE_STEP as WEIGHTS_NOISE_STEP
from fastue.ops._keyed import WEIGHTS_STATISTICS as WEIGHTS_STATISTICS
from fastue.ops._keyed import WEIGHTS_TRAIN as WEIGHTS_TRAIN
from fastue.ops.apply_noise import apply_noise as apply_noise
from fastue.ops.class_step import class_step as class_step
from fastue.ops.conv import conv as conv
from fastue.ops.conv3x3 import conv3x3 as conv3x3
from fastue.ops.conv_weights import conv_weights as conv_weights
from fastue.ops.count_correct import count_correct as count_correct
from fastue.ops.diffusion_step import diffusion_step as diffusion_step
from fastue.ops.ghost_pair import ghost_pair as ghost_pair
from fastue.ops.ghost_pair_backward import ghost_pair_backward as ghost_pair_backward
from fastue.ops.grad_cosine import grad_cosine as grad_cosine
from fastue.ops.grad_cosine_backward import grad_cosine_backward as grad_cosine_backward
from fastue.ops.l2_step import l2_step as l2_step
from fastue.ops.linf_step import linf_step as linf_step
from fastue.ops.weight_noise import weight_noise as weight_noise


def has_kernel(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the op of that name has a kernel there for this dtype, and the user has not asked for
    another backend."""
    op, wanted, probe = (
        opspec.registry()[name],
        opspec.chosen_backend(),
        torch.empty(0, dtype=dtype, device=device),
    )
    return dtype in op.dtypes and any(
        wanted in ("auto", b.name) and not op.why_not(b, (probe,)) for b in op.backends
    )
