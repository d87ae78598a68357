"""fastue purify: names and labels kept, the same files after a kill, no picture in both sets."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fastue.cli import main
from fastue.cli.purify import METHODS, NETS
from fastue.commands.protect import protect
from fastue.commands.purify import purify
from fastue.core.errors import DataError, UsageError
from fastue.data.sources import open_dataset
from fastue.purifiers import dvae
from fastue.purifiers.sampling import SAMPLERS
from fastue.purifiers.training import CONFIGS, PurifierConfig


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(CONFIGS, "small", PurifierConfig(steps=2, width=8, batch=8))


@pytest.fixture
def folders(tiny_folder):
    """96 pictures to purify, in two batches, and 8 others."""
    return tiny_folder("source"), tiny_folder("aux", per_class=2, seed=9)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_names_and_labels_are_kept_and_a_killed_run_ends_the_same(folders, tmp_path):
    source, aux = folders
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert purify(source, whole, "avatar", aux=aux, steps=2).written == 96

    def kill(phase, done, total):
        if phase == "pictures":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purify(source, cut, "avatar", aux=aux, steps=2, progress=kill)
    assert len(list(cut.rglob("*.png"))) == 64 and not (cut / "purified.json").exists()
    next(cut.rglob("*.png")).unlink()  # in the middle of a batch
    shutil.rmtree(tmp_path / "purifiers")  # and the purifier is trained anew
    assert purify(source, cut, "avatar", aux=aux, steps=2).written == 96
    assert files(cut) == files(whole)
    assert purify(source, cut, "avatar", aux=aux, steps=2).written == 0

    before, after = open_dataset(source), open_dataset(whole)
    assert (after.ids, after.classes) == (before.ids, before.classes)
    assert after.labels.tolist() == before.labels.tolist()
    assert (after.images != before.images).flatten(1).any(1).all()
    about = json.loads((whole / "purified.json").read_text())
    assert about["method"] == "avatar" and about["aux"] == open_dataset(aux).fingerprint()


def test_pictures_in_both_sets_are_refused(folders, tmp_path):
    source, aux = folders
    shutil.copy(source / "1" / "003.png", aux / "0" / "stolen.png")
    with pytest.raises(DataError, match=r"1 of its pictures.*0/stolen\.png"):
        purify(source, tmp_path / "out", "oneshot", aux=aux)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def protected(tiny_folder, tmp_path):
    """A protected directory of LSP, whose run.json knows the originals."""
    source = tiny_folder("originals")
    protect(source, tmp_path / "protected", "lsp", check=False, patch=4)
    return tmp_path / "protected", source


def test_originals_are_refused_but_as_an_oracle(protected, folders, tmp_path):
    directory, source = protected
    aux = folders[1]
    shutil.copy(source / "1" / "003.png", aux / "0" / "original.png")
    with pytest.raises(DataError, match="among the originals.*oracle"):
        purify(directory, tmp_path / "out", "oneshot", aux=aux)
    purify(directory, tmp_path / "out", "oneshot", aux="oracle")
    about = json.loads((tmp_path / "out" / "purified.json").read_text())
    assert about["oracle"] and about["aux"] == open_dataset(source).fingerprint()
    (directory / "run.json").unlink()  # its owner keeps it back
    with pytest.raises(UsageError, match="--aux oracle"):
        purify(directory, tmp_path / "other", "oneshot", aux="oracle")


def test_the_grid_shows_pictures_before_and_after(protected, folders, tmp_path):
    directory, source = protected
    for name, place, columns in (("with", directory, 4), ("without", source, 3)):
        grid = purify(place, tmp_path / name, "oneshot", aux=folders[1]).grid
        picture = np.asarray(Image.open(grid))
        assert grid.parent == tmp_path and picture.shape[1] == columns * 132 + 4
        first = Image.open(source / "0" / "000.png")  # original and source: pixels sharp
        sharp = first.resize((128, 128), Image.Resampling.NEAREST)
        assert np.array_equal(picture[18:146, 4:132], np.asarray(sharp))


def test_the_released_form_is_done_in_its_own_batches(folders, tmp_path):
    source, aux = folders
    purify(source, tmp_path / "out", "jcdp", aux=aux, compat="jcdp2023")
    about = json.loads((tmp_path / "out" / "purified.json").read_text())
    assert about["sampler"]["compat"] == "jcdp2023" and about["sampler"]["batch"] == 500
    for wrong in ({"method": "avatar"}, {"steps": 5}):
        with pytest.raises(UsageError, match="--compat"):
            purify(source, tmp_path / "no", **{"aux": aux, "compat": "jcdp2023", **wrong})


def test_dvae_needs_no_auxiliary_pictures_and_ends_the_same_after_a_kill(
    folders, tmp_path, monkeypatch
):
    monkeypatch.setattr(dvae, "CONFIG", dvae.DvaeConfig(epochs=2, width=8, code=8))
    source, aux = folders
    purify(source, tmp_path / "whole", "dvae", cache=tmp_path / "first")

    def kill(phase, done, total):
        if (phase, done) == ("D-VAE 2 of 2", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purify(source, tmp_path / "cut", "dvae", progress=kill)
    phases = []
    purify(source, tmp_path / "cut", "dvae", progress=lambda *now: phases.append(now[:2]))
    assert phases[0] == ("D-VAE 2 of 2", 2)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    for method, wrong in (("dvae", {"aux": aux}), ("jcdp", {})):
        with pytest.raises(UsageError, match="--aux"):
            purify(source, tmp_path / "no", method, **wrong)


def test_networks_and_weights_are_checked_first(folders, tmp_path):
    source, aux = folders
    for wrong, message in (
        ({"net": "large"}, "--net large"),
        ({"weights": "x.pth"}, "--weights: only"),
        ({"perceptual": "ssim"}, "--perceptual ssim"),
    ):
        with pytest.raises(UsageError, match=message):
            purify(source, tmp_path / "no", aux=aux, **wrong)
    assert not (tmp_path / "no").exists()


def test_originals_in_the_auxiliary_set_are_told(folders, tmp_path):
    source, aux = folders
    purify(source, tmp_path / "fair", "oneshot", aux=aux)
    pixels = np.asarray(Image.open(source / "1" / "003.png")).astype(int)
    sign = np.random.default_rng(0).choice([-8, 8], pixels.shape)  # 60 to 244: nothing is clipped
    Image.fromarray((pixels + sign).astype(np.uint8)).save(aux / "0" / "original.png")
    purify(source, tmp_path / "oracle", "oneshot", aux=aux)
    for name, near in (("fair", 0), ("oracle", 1)):
        about = json.loads((tmp_path / name / "purified.json").read_text())
        assert (about["oracle"], about["aux_near"]) == (near > 0, near)


def test_a_folder_of_something_else_is_left_alone(folders, tmp_path):
    source, aux = folders
    out = tmp_path / "out"
    purify(source, out, "oneshot", aux=aux)
    before = files(out)
    for other in ({"seed": 1}, {"method": "avatar", "steps": 2}):
        with pytest.raises(UsageError, match="other pictures or settings"):
            purify(source, out, **{"method": "oneshot", "aux": aux, **other})
    with pytest.raises(UsageError, match="not empty"):
        purify(source, aux, "oneshot", aux=aux)
    assert files(out) == before


def test_command_line(folders, tmp_path, capsys):
    source, aux = map(str, folders)
    out = str(tmp_path / "out")
    assert (
        main(["purify", source, "--with", "jcdp", "--steps", "1", "--aux", aux, "--out", out]) == 0
    )
    assert "96 pictures, 96 of them written now" in capsys.readouterr().out
    assert main(["purify", source, "--aux", aux, "--out", out, "--steps", "21"]) == 2
    assert "--steps 21" in capsys.readouterr().err
    assert set(METHODS) == {*SAMPLERS, "dvae"} and set(NETS) == set(CONFIGS)
