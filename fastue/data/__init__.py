"""Pictures in, batches through the middle, protected pictures and their noise out."""

from fastue.data.augment import crop_flip
from fastue.data.dataset import Batch, ImageDataset, batches, epoch_order, gather
from fastue.data.keyed import keyed_generator
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import VerifyResult, open_protected
from fastue.data.writers import protected_pictures, write_folder, write_npz

__all__ = [
    "Batch",
    "ImageDataset",
    "NoiseStore",
    "VerifyResult",
    "batches",
    "crop_flip",
    "epoch_order",
    "gather",
    "keyed_generator",
    "open_dataset",
    "open_protected",
    "protected_pictures",
    "write_folder",
    "write_npz",
]
