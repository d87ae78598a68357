"""Pictures in, batches through the middle, protected pictures and their noise out."""

from fastue.data.dataset import Batch, ImageDataset, batches, epoch_order, gather
from fastue.data.keyed import keyed_generator
from fastue.data.sources import open_dataset

__all__ = ["Batch", "ImageDataset", "batches", "epoch_order", "gather", "keyed_generator", "open_dataset"]
