"""Pictures in, batches through the middle, protected pictures and their noise out.

What is named here is imported when it is first asked for: a method's settings need none of it.
"""

import importlib

_MODULES = {
    "Batch": "dataset",
    "FFCVLoader": "ffcv",
    "ImageDataset": "dataset",
    "NoiseStore": "store",
    "VerifyResult": "verify",
    "batches": "dataset",
    "beton_blocks": "beton",
    "crop_flip": "augment",
    "epoch_order": "dataset",
    "gather": "dataset",
    "keyed_generator": "keyed",
    "open_beton": "beton",
    "open_dataset": "sources",
    "open_protected": "verify",
    "protected_pictures": "writers",
    "write_beton": "beton",
    "write_folder": "writers",
    "write_npz": "writers",
}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
