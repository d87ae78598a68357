"""A whole EMN run does not depend on the backend of its ops: same noise, same error curve."""

import pytest
import torch

from fastue.methods.emn import EMNConfig, emn
from fastue.ops import use_backend


@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("mode", ["sample", "class"])
def test_thirty_noise_steps_on_every_backend(tiny, mode, backend, need_backend):
    need_backend("linf_step", backend)
    data = tiny(8)
    config = EMNConfig(
        mode=mode,
        arch="cnn-w4",
        precision="float32",
        batch=32,
        grain=2,
        train_steps=2,
        steps=10,
        max_sweeps=3,
        subset=1.0,
    )
    results = {}
    for name in ("reference", backend):
        with use_backend(name):
            results[name] = emn(data, config)
    assert results["reference"].history == results[backend].history
    assert torch.equal(results["reference"].noise, results[backend].noise)
    assert results[backend].noise.abs().max() > 3 / 255
