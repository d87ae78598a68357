"""Without a GPU the tests run Triton's kernels on the CPU, which has to be said before anything
imports Triton.

One thread a process: the cores are shared.
"""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402 - the variable above comes first
import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def compiler() -> None:
    """For tests that compile C++: skipped without g++, unless FASTUE_REQUIRE names cpp."""
    from fastue.core import env

    if shutil.which("g++") is None and "cpp" not in env.required_backends():
        pytest.skip("g++ is not on PATH")


@pytest.fixture(scope="session")
def need_backend():
    """A function (op, backend): skips with the reason where that backend is not installed, unless
    FASTUE_REQUIRE names it."""
    import fastue.ops  # noqa: F401 - registers the ops
    from fastue.core import env, opspec

    def need(op: str, backend: str) -> None:
        spec = opspec.registry()[op]
        reason = next(spec.function(b)[1] for b in spec.backends if b.name == backend)
        if reason and backend not in env.required_backends():
            pytest.skip(reason)

    return need


@pytest.fixture(scope="session")
def tiny():
    """A function (per_class, seed) -> learnable ImageDataset of 12x12 pictures: 4 classes, each a
    coloured quadrant.

    With a contrast of 18 some pictures are missed: for tests that compare counts.
    """
    from fastue.data.dataset import ImageDataset

    def make(
        per_class: int = 24, seed: int = 0, source: str = "tiny", contrast: int = 55
    ) -> ImageDataset:
        generator = np.random.default_rng(seed)
        x = generator.integers(60, 190, (4 * per_class, 12, 12, 3))
        y = np.repeat(np.arange(4), per_class)
        for k in range(4):
            top, left = 6 * (k // 2), 6 * (k % 2)
            x[y == k, top : top + 6, left : left + 6, k % 3] += contrast
        return ImageDataset(
            images=torch.from_numpy(x.astype(np.uint8)).permute(0, 3, 1, 2),
            labels=torch.from_numpy(y),
            ids=[f"{k}/{i:03d}.png" for k in range(4) for i in range(per_class)],
            classes=list("0123"),
            source=source,
        )

    return make


@pytest.fixture
def tiny_folder(tiny, tmp_path):
    """A function (name, per_class, seed) -> path of the tiny set written as a picture folder."""
    from PIL import Image

    def write(name: str = "source", per_class: int = 24, seed: int = 0):
        data = tiny(per_class, seed)
        for picture, identity in zip(data.images, data.ids, strict=True):
            path = tmp_path / name / identity
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(path)
        return tmp_path / name

    return write


def pytest_addoption(parser) -> None:
    parser.addoption("--pictures", help="CIFAR-10 pictures in class folders, for some slow tests")


@pytest.fixture(scope="session")
def pictures(request):
    """Real pictures, where a folder of them was named."""
    from fastue.data.sources import open_dataset

    if (folder := request.config.getoption("--pictures")) is None:
        pytest.skip("needs real pictures: --pictures FOLDER")
    return open_dataset(folder)


def pytest_report_header() -> list[str]:
    """Backends that are not tested here, and why: what is absent is said once instead of being
    skipped case by case."""
    from ops import checks  # tests/ops

    import fastue.ops  # noqa: F401 - registers the ops
    from fastue.core import opspec

    reasons = {
        (b.name, checks.why_absent(op, b)) for op in opspec.registry().values() for b in op.backends
    }
    return [f"not tested here: {name} ({why})" for name, why in sorted(reasons) if why]
