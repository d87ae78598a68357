"""Budgets: what fits, how noise is rounded into them, and what random noise uses them up."""

import pytest
import torch

from fastue.core.errors import UsageError
from fastue.data.budget import Budget, lengths, within_length
from fastue.data.controls import random_noise
from fastue.data.keyed import keyed_generator


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.5, 1.304, 4.0])
def test_l2_noise_is_rounded_within_its_length_and_hardly_shorter(eps):
    noise = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise *= eps / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    noise.clamp_(-0.49, 0.49)
    whole = Budget(eps, "l2").quantise(noise)
    assert whole.dtype == torch.int8 and within_length(float(lengths(whole).max()), eps)
    assert (whole.double() - noise.double() * 255).abs().max() < 1
    if eps >= 0.5:  # below, most values round to zero and nothing can be done
        assert lengths(whole).min() > 0.99 * lengths(noise * 255).min()


def test_l2_rounding_goes_back_only_where_it_has_to():
    exact = torch.tensor([2.6, 2.6, 0.2, -1.4]).view(1, 1, 1, 4)
    length = float(exact.norm())
    assert Budget(length / 255, "l2").quantise(exact / 255).flatten().tolist() == [2, 3, 0, -1]
    assert Budget(5 / 255, "l2").quantise(exact / 255).flatten().tolist() == [3, 3, 0, -1]
    longer = Budget(length / 255, "l2").quantise(10 * exact / 255)  # scaled down first
    assert longer.flatten().tolist() == [2, 3, 0, -1]


def test_l2_values_stay_in_int8():
    noise = torch.tensor([300.0, -300.0, 0.0]).view(1, 1, 1, 3) / 255
    assert Budget(3.0, "l2").quantise(noise).flatten().tolist() == [127, -127, 0]
    assert Budget(3.0, "l2").levels == 127 and Budget(0.1, "l2").levels == 25


@pytest.mark.parametrize(
    "arguments", [(0.001,), (128 / 255,), (0.003, "l2"), (0.1, "l1"), (float("nan"),)]
)
def test_budgets_that_cannot_be_written_are_refused(arguments):
    with pytest.raises(UsageError):
        Budget(*arguments)


@pytest.mark.parametrize("per", ["sample", "class"])
def test_random_noise_in_linf_is_what_it_always_was(per):
    noise = random_noise((3, 5, 4), 7, Budget(8 / 255), 2, per)
    before = keyed_generator(2, f"random-{per}").uniform(-8, 8, size=(7, 3, 5, 4)).round()
    assert noise.dtype == torch.int8 and noise.tolist() == before.tolist()


@pytest.mark.parametrize("per", ["sample", "class"])
def test_random_noise_in_l2_is_as_long_as_allowed(per):
    noise = random_noise((3, 16, 16), 20, Budget(1.0, "l2"), 0, per)
    assert within_length(float(lengths(noise).max()), 1.0) and lengths(noise).min() > 0.99 * 255
    assert torch.equal(noise[:5], random_noise((3, 16, 16), 5, Budget(1.0, "l2"), 0, per))
    assert not torch.equal(noise, random_noise((3, 16, 16), 20, Budget(1.0, "l2"), 1, per))
