"""`fastue verify` as a function: every written picture decoded again and compared with what it has
to be.
"""

import os

from fastue.core.errors import UsageError
from fastue.data import verify as verification
from fastue.data.dataset import ImageDataset
from fastue.data.verify import VerifyResult


def verify(
    directory: str | os.PathLike[str],
    source: str | os.PathLike[str] | ImageDataset | None = None,
    labels: str | os.PathLike[str] | None = None,
) -> VerifyResult:
    """Check what `protect` wrote to `directory`: files, pixels, ids, labels, checksums, budget.

    `source` names the originals (what `protect` takes): then every pixel must be original + noise
    within 0 and 255. Without it, pixels are compared with the hashes taken when they were written.
    `labels` is the CSV table of `file,class` lines of a source that is not sorted into classes.
    `.ok` of the result says whether all is well, `.text()` what is wrong. Raises DataError where
    there is nothing to check.
    """
    if labels is not None and source is None:
        raise UsageError("--labels goes with --source, the originals it names the classes of")
    return verification.verify(directory, source, labels=labels)
