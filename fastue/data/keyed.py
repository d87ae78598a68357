"""Randomness by key: a draw depends on what it is for, never on when, where or in which batch."""

import hashlib
import json

import numpy as np


def keyed_generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator (Philox) that is a pure function of its arguments.

    `purpose` separates uses that share a seed ("order", "crop_flip", ...), `numbers` index within a
    purpose (epoch, sweep, shard). The 128-bit Philox key is a hash of all of them, so neighbouring
    seeds give unrelated streams.
    """
    text = json.dumps([int(seed), str(purpose), *(int(n) for n in numbers)])
    key = hashlib.blake2b(text.encode(), digest_size=16, person=b"fastue-keyed").digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8")))
