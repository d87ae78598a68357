"""fastue convert: every way there and back, bit for bit."""

import pickle

import numpy as np
import pytest
import torch

from fastue.cli import main
from fastue.commands.convert import convert
from fastue.commands.protect import protect
from fastue.core.errors import DataError, UsageError
from fastue.data.dataset import ImageDataset
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import open_protected, verify
from fastue.data.writers import write_npz

PICTURES = {
    "png": "set",
    "webp": "set",
    "csv": "set",
    "npz": "set.npz",
    "avatar": "set.npz",
    "beton": "set.beton",
    "tar": "set.tar",
    "parquet": "set.parquet",
}


@pytest.fixture
def protected(tiny_folder, tmp_path):
    """A function (mode, grain) -> (source folder, protected directory)."""

    def make(mode="sample", grain=2):
        source, out = tiny_folder(f"s-{mode}-{grain}"), tmp_path / f"p-{mode}-{grain}"
        if grain == 1:
            protect(source, out, arch="cnn-w8", mode=mode, grain=1, max_sweeps=1, check=False)
        else:
            protect(source, out, "lsp", mode=mode, patch=grain, check=False)
        return source, out

    return make


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_a_protected_directory(protected, tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    _, out = protected()
    path = tmp_path / PICTURES[name]
    first = convert(out, path, name)
    assert first.written and first.rows == 96 and first.bytes > 0
    written, back = open_protected(out), open_dataset(path)
    # by what they look like: some formats name and sort pictures anew
    order = [
        sorted(range(len(d)), key=lambda row, d=d: d.images[row].numpy().tobytes())
        for d in (written, back)
    ]
    assert torch.equal(written.images[order[0]], back.images[order[1]])
    assert torch.equal(written.labels[order[0]], back.labels[order[1]])
    assert not convert(out, path, name).written
    other = open_dataset(protected("class")[0])
    write_npz(tmp_path / "other.npz", other, torch.zeros_like(other.images).char(), other.labels)
    with pytest.raises(UsageError, match="exists and holds something else"):
        convert(tmp_path / "other.npz", path, name)


@pytest.mark.parametrize("suffix", ["pt", "pkl", "safetensors.zst"])
@pytest.mark.parametrize("mode, grain", [("sample", 1), ("sample", 3), ("class", 3)])
def test_noise_out_and_in_again(protected, tmp_path, suffix, mode, grain):
    if suffix.endswith("zst"):
        pytest.importorskip("zstandard")
    source, out = protected(mode, grain)
    path, again = tmp_path / f"noise.{suffix}", tmp_path / "again"
    store = NoiseStore.open(out)
    assert convert(out, path).rows == store.header["rows"]
    assert convert(path, again, pictures=source, eps="8/255").written
    imported = NoiseStore.open(again)
    assert torch.equal(imported.bank(), store.bank())
    assert imported.header["per"] == mode and imported.manifest["levels"] == 8
    assert imported.grain == (grain if suffix.endswith("zst") else 1)
    assert torch.equal(open_protected(again).images, open_protected(out).images)
    assert verify(again, source).ok
    assert not convert(path, again, pictures=source, eps="8/255").written


def test_refusals(protected, tmp_path):
    source, out = protected()
    noise = tmp_path / "n.pt"
    for value, words in [
        (torch.zeros(95, 3, 12, 12), "95 rows of noise for 96 pictures"),
        (torch.zeros(96, 3, 12, 11), "noise of .* for pictures of"),
        (torch.full((96, 3, 12, 12), float("nan")), "NaN"),
        (torch.full((96, 3, 12, 12), 2.0), "at most 127/255"),
        (torch.zeros(96, 3, 12), "expected"),
        ({"noise": torch.zeros(96, 3, 12, 12)}, "holds a dict"),
        (torch.zeros(96, 3, 12, 12, dtype=torch.int64), "int64"),
    ]:
        torch.save(value, noise)
        with pytest.raises(DataError, match=words):
            convert(noise, tmp_path / "new", pictures=source)
        assert not (tmp_path / "new").exists()
    torch.save(torch.full((96, 3, 12, 12), 9 / 255), noise)
    with pytest.raises(UsageError, match="goes up to 9/255"):
        convert(noise, tmp_path / "new", pictures=source, eps="8/255")
    with pytest.raises(UsageError, match="--pictures"):
        convert(noise, tmp_path / "new")
    with pytest.raises(UsageError, match="lossy"):
        convert(source, tmp_path / "a.jpg")
    with pytest.raises(UsageError, match="holds no noise"):
        convert(source, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="go with a file of noise"):
        convert(source, tmp_path / "a.npz", mode="class")
    noise.write_bytes(b"no zip, no pickle")
    with pytest.raises(DataError, match="n.pt"):
        convert(noise, tmp_path / "new", pictures=source)
    assert not (tmp_path / "new").exists()


def test_a_square_count_has_to_be_told_what_it_is(tmp_path, tiny):
    data = tiny(1)  # four pictures of four classes
    write_npz(tmp_path / "a.npz", data, torch.zeros_like(data.images).char(), data.labels)
    torch.save(torch.zeros(4, 3, 12, 12), tmp_path / "n.pt")
    with pytest.raises(UsageError, match="--mode"):
        convert(tmp_path / "n.pt", tmp_path / "out", pictures=tmp_path / "a.npz")
    convert(tmp_path / "n.pt", tmp_path / "out", pictures=tmp_path / "a.npz", mode="class")
    assert NoiseStore.open(tmp_path / "out").header["per"] == "class"


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/fastue-was-here",)


def test_foreign_pickles_run_nothing(protected, tmp_path):
    source, _ = protected()
    path = tmp_path / "n.pkl"
    path.write_bytes(pickle.dumps([np.zeros(3), Evil()]))
    with pytest.raises(DataError, match=r"(posix|nt)\.system, which is not looked up"):
        convert(path, tmp_path / "new", pictures=source)
    for protocol in range(6):
        path.write_bytes(pickle.dumps(np.full((96, 3, 12, 12), -3, np.int8), protocol=protocol))
        convert(path, tmp_path / f"out-{protocol}", pictures=source)
        assert NoiseStore.open(tmp_path / f"out-{protocol}").bank().unique().tolist() == [-3]
    old = pickle.dumps(np.zeros((4, 3, 12, 12), np.int8), protocol=2)
    path.write_bytes(old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    convert(path, tmp_path / "out-old", pictures=source)


def test_coded_noise_finds_its_pictures_by_id(protected, tmp_path):
    pytest.importorskip("zstandard")
    source, out = protected()
    convert(out, tmp_path / "n.safetensors.zst")
    data = open_dataset(source)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    mixed: ImageDataset = data.subset(order)
    write_npz(tmp_path / "m.npz", mixed, torch.zeros_like(mixed.images).char(), torch.arange(96))
    convert(tmp_path / "n.safetensors.zst", tmp_path / "again", pictures=tmp_path / "m.npz")
    assert torch.equal(
        NoiseStore.open(tmp_path / "again").bank(), NoiseStore.open(out).bank()[order]
    )
    content = bytearray((tmp_path / "n.safetensors.zst").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "n.safetensors.zst").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        convert(tmp_path / "n.safetensors.zst", tmp_path / "third", pictures=tmp_path / "m.npz")
    assert not (tmp_path / "third").exists()


def test_from_the_command_line(protected, tmp_path, capsys):
    source, out = protected()
    assert main(["convert", str(out), str(tmp_path / "a-{0..2}.tar")]) == 0
    assert "Written: " in capsys.readouterr().out
    assert len(list(tmp_path.glob("a-?.tar"))) == 3
    assert main(["convert", str(tmp_path / "a-{0..2}.tar"), str(tmp_path / "b.npz")]) == 0
    assert main(["convert", str(source), str(tmp_path / "c.zip")]) == 2
    assert "no format of this name" in capsys.readouterr().err
