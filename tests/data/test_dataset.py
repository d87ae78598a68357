"""The resident set, its batches, and randomness by key."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastue.core.errors import DataError, UsageError
from fastue.data.dataset import batches, epoch_order
from fastue.data.keyed import keyed_generator


def test_images_become_channels_last_and_keep_their_values(dataset):
    again = replace(dataset, images=dataset.images.contiguous())
    assert again.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(again.images, dataset.images)
    assert (len(again), again.num_classes, again.shape) == (10, 3, (3, 6, 5))


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_batches_cover_the_order_once(dataset, size):
    order = epoch_order(len(dataset), seed=1, epoch=2)
    rows = []
    for batch in batches(dataset, size, order):
        assert batch.x.dtype == torch.uint8 and batch.y.dtype == batch.index.dtype == torch.int64
        assert batch.x.permute(0, 2, 3, 1).is_contiguous()
        assert torch.equal(batch.x, dataset.images[batch.index])
        assert torch.equal(batch.y, dataset.labels[batch.index])
        rows += batch.index.tolist()
    assert rows == order.tolist() and sorted(rows) == list(range(10))


def test_a_batch_is_a_copy(dataset):
    before = dataset.images.clone()
    next(batches(dataset, 4)).x.zero_()
    assert torch.equal(dataset.images, before)


def test_batch_size_must_be_positive(dataset):
    with pytest.raises(UsageError, match="at least 1"):
        next(batches(dataset, 0))


def test_order_is_a_function_of_its_arguments():
    first = epoch_order(1000, seed=0, epoch=0)
    assert torch.equal(first, epoch_order(1000, seed=0, epoch=0))
    assert sorted(first.tolist()) == list(range(1000))
    assert not torch.equal(first, epoch_order(1000, seed=0, epoch=1))
    assert not torch.equal(first, epoch_order(1000, seed=1, epoch=0))


def test_keyed_draws_have_pinned_values():
    # These values are part of the contract: a resumed or repeated run draws the same on every
    # machine.
    assert keyed_generator(0, "order", 1).integers(0, 1000, 4).tolist() == [526, 943, 404, 296]
    assert epoch_order(8, 0, 0).tolist() == [1, 2, 7, 6, 3, 4, 5, 0]


def test_keys_do_not_run_into_each_other():
    keys = [
        (0, "a"),
        (0, "a", 0),
        (0, "a", 1),
        (1, "a"),
        (0, "b"),
        (0, "a", 1, 1),
        (0, "a", 11),
        (-1, "a"),
    ]
    draws = {tuple(keyed_generator(*key).integers(0, 2**62, 2).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_subset_keeps_ids_and_classes(dataset):
    part = dataset.subset(np.array([7, 2]))
    assert part.ids == ["bee/7.jpg", "cow/2.jpg"] and part.classes == dataset.classes
    assert torch.equal(part.images, dataset.images[[7, 2]]) and part.labels.tolist() == [1, 2]


def test_fingerprint_sees_everything_that_matters_and_nothing_else(dataset):
    print_ = dataset.fingerprint()
    assert (
        print_
        == replace(
            dataset, images=dataset.images.contiguous(), source="x", notes=["y"]
        ).fingerprint()
    )
    pixel = dataset.images.clone()
    pixel[3, 1, 2, 2] ^= 1
    labels = dataset.labels.clone()
    labels[0] = 1
    changed = [
        replace(dataset, images=pixel),
        replace(dataset, labels=labels),
        replace(dataset, ids=["other", *dataset.ids[1:]]),
        replace(dataset, classes=["ant", "bee", "cat"]),
        replace(dataset, images=dataset.images.reshape(10, 3, 5, 6)),
        dataset.subset(range(9)),
    ]
    assert len({print_, *(other.fingerprint() for other in changed)}) == len(changed) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(10, 3, 6, 5)}, "uint8"),
        ({"images": torch.zeros(10, 4, 6, 5, dtype=torch.uint8)}, "1 or 3"),
        ({"labels": torch.zeros(10)}, "int64"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, "9 labels"),
        ({"labels": torch.full((10,), 3)}, "3 classes"),
        ({"labels": torch.full((10,), -1)}, "-1"),
        ({"ids": ["same"] * 10}, "unique"),
        ({"classes": ["a", "a", "b"]}, "unique"),
    ],
)
def test_parts_that_do_not_fit_are_refused(dataset, change, message):
    with pytest.raises(DataError, match=message):
        replace(dataset, **change)
