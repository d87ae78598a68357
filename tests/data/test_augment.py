"""Crop and flip against a plain loop, and keyed by row."""

import pytest
import torch

from fastue.data.augment import _draws, crop_flip


def by_hand(x, index, seed, epoch, pad):
    down, right, flip = _draws(seed, epoch, pad, 1 << 10, x.device)
    out = []
    for picture, row in zip(x, index.tolist(), strict=True):
        padded = torch.nn.functional.pad(picture, (pad, pad, pad, pad))
        top, left = int(down[row]), int(right[row])
        cut = padded[:, top : top + x.shape[2], left : left + x.shape[3]]
        out.append(cut.flip(2) if flip[row] else cut)
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "pad"), [((40, 3, 8, 8), 4), ((7, 1, 5, 9), 2), ((5, 3, 6, 4), 0), ((3, 3, 1, 1), 1)]
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_equals_a_loop_over_the_pictures(dtype, shape, pad, memory):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(1, 256, shape, generator=generator).to(dtype).contiguous(memory_format=memory)
    index = torch.randperm(500, generator=generator)[: shape[0]]
    before = x.clone()
    out = crop_flip(x, index, seed=3, epoch=4, pad=pad)
    assert torch.equal(out, by_hand(x, index, 3, 4, pad))
    assert out.dtype == dtype and out.permute(0, 2, 3, 1).is_contiguous()
    assert torch.equal(x, before)


def test_a_row_does_not_depend_on_its_batch():
    x = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    index = torch.arange(64)
    whole = crop_flip(x, index, seed=0, epoch=1)
    halves = [
        crop_flip(x[part], index[part], seed=0, epoch=1) for part in (slice(0, 5), slice(5, 64))
    ]
    assert torch.equal(whole, torch.cat(halves))
    order = torch.randperm(64)
    assert torch.equal(crop_flip(x[order], order, seed=0, epoch=1), whole[order])
    assert torch.equal(crop_flip(x, index, seed=0, epoch=1, rows=50_000), whole)


def test_epochs_and_seeds_differ():
    x = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    index = torch.arange(64)
    first = crop_flip(x, index, seed=0, epoch=0)
    assert not torch.equal(first, crop_flip(x, index, seed=0, epoch=1))
    assert not torch.equal(first, crop_flip(x, index, seed=1, epoch=0))


def test_all_offsets_and_both_flips_are_equally_likely():
    down, right, flip = _draws(0, 0, 4, 1 << 16, torch.device("cpu"))
    for offsets in (down, right):
        counts = torch.bincount(offsets, minlength=9)
        expected = (1 << 16) / 9
        assert len(counts) == 9 and ((counts - expected).abs() < 5 * expected**0.5).all()
    assert abs(int(flip.sum()) - (1 << 15)) < 5 * 128
    joint = torch.bincount((down * 9 + right) * 2 + flip, minlength=162)
    assert ((joint - (1 << 16) / 162).abs() < 6 * ((1 << 16) / 162) ** 0.5).all()


def test_an_empty_batch_stays_empty():
    assert crop_flip(
        torch.empty(0, 3, 8, 8), torch.empty(0, dtype=torch.int64), seed=0, epoch=0
    ).shape == (0, 3, 8, 8)
