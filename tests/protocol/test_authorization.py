"""The suite of who is authorized: its members for weights and for keys, and what they train on."""

import pytest
import torch

from fastue.commands.attack import attack
from fastue.commands.protect import protect
from fastue.core.errors import DataError, UsageError
from fastue.countermeasures import AUTHORIZATION, SUMMARIES
from fastue.data.tensorfile import write_tensors
from fastue.models import authorized, saved
from fastue.protocol import authorization
from fastue.victims.config import VictimConfig
from fastue.victims.train import fit

SHORT = {"epochs": 1, "batch": 32, "device": "cpu"}
QUICK = {"arch": "cnn-w8", "precision": "float32"}
ATTACKS = {"class-means", "orthogonal-projection", "grayscale", "jpeg", "distillation"}


def weights(path, frozen=0, seed=0):
    model = authorized.authorized("cnn-w8", 4, 3, seed, frozen)
    config = {"frozen": frozen}
    saved.save(path, model, arch="cnn-w8", classes=list("0123"), channels=3, config=config)
    return path


def test_members_of_weights(tmp_path):
    members, archs = authorization.suite(weights(tmp_path / "a.safetensors"), (), "cpu", aux=False)
    by_name = {member.name: member for member in members}
    assert by_name.keys() == {"authorized", "none", *ATTACKS}
    assert archs[0] == "cnn-w8" and len(archs) == 4, "at least three other architectures"
    assert by_name["authorized"].archs == ("cnn-w8",) and not by_name["none"].archs
    more, _ = authorization.suite(
        weights(tmp_path / "b.safetensors", frozen=1), (), "cpu", aux=True
    )
    assert {member.name for member in more} == {*by_name, "wrong-key", "fine-tuning"}
    versions = {member.version for member in (members[0], more[0])}
    assert len(versions) == 2, "a row of one file is no row of another"


def test_only_weights_and_keys_authorize(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {"kind": "noise"})
    with pytest.raises(DataError, match="neither initial weights nor a key"):
        authorization.suite(tmp_path / "x", (), "cpu", aux=False)
    with pytest.raises(UsageError, match="made by --method emn, which authorizes nobody"):
        authorization.file_of(tmp_path, {"method": "emn"})


def test_the_authorized_network_starts_from_its_weights(tiny, tmp_path):
    data, test = tiny(), tiny(seed=1)
    path, config = weights(tmp_path / "a.safetensors", frozen=1, seed=9), VictimConfig("cnn-w8", **{
        "epochs": 2, "batch": 16})  # fmt: skip
    member = authorization.suite(path, (), "cpu", aux=False)[0][0]
    options = {"seed": 0, "step": authorization.train_step, "progress": lambda *_: None}
    curves = member.train(data, test, config, means=None, **options)
    model, _ = authorized.load(path)
    front = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("features.0")}
    trained, mine = fit(data, test, config, model=model, **options)
    assert curves["loss"] == mine["loss"] != fit(data, test, config, **options)[1]["loss"]
    assert all(torch.equal(trained.state_dict()[name], front[name]) for name in front)


def test_keyed_pictures_from_end_to_end(tiny_folder, tmp_path, monkeypatch):
    configure = authorization.methods.configure
    short = {"max_sweeps": 2, **QUICK}
    monkeypatch.setattr(
        authorization.methods, "configure", lambda name, own: configure(name, {**own, **short})
    )
    source, clean, aux = (tiny_folder(n, seed=s) for n, s in (("s", 0), ("t", 1), ("a", 2)))
    protect(source, tmp_path / "P", "keyed", check=False, max_sweeps=4, grain=3, **QUICK)
    result = attack(
        tmp_path / "P", clean, aux=aux, suite="authorization", arch=["cnn-w8", "vgg11-w4"], **SHORT
    )
    assert not result.failures
    trained = {(row["countermeasure"], row["arch"]) for row in result.rows}
    assert trained == {
        *((name, "cnn-w8") for name in (*ATTACKS, "wrong-key", "other-run", "fine-tuning")),
        *((name, arch) for name in ("authorized", "none") for arch in ("cnn-w8", "vgg11-w4")),
    }
    assert {row["arm"] for row in result.rows} == {"clean", "protected"}
    assert result.table.splitlines()[-1].startswith("authorized")
    again = attack(
        tmp_path / "P", clean, suite="authorization", authorized=tmp_path / "P/key.safetensors",
        arch=["cnn-w8", "vgg11-w4"], **SHORT,
    )  # fmt: skip
    assert again.rows[0] == result.rows[0], "nothing is trained twice"
    with pytest.raises(UsageError, match="--authorized goes with --suite authorization"):
        attack(tmp_path / "P", clean, authorized=tmp_path / "P/key.safetensors", **SHORT)


def test_every_member_has_its_words(tmp_path):
    known = {**SUMMARIES, **AUTHORIZATION}
    path = weights(tmp_path / "a.safetensors", frozen=1)
    members, _ = authorization.suite(path, (), "cpu", aux=True)
    assert {member.name for member in members} | {"other-run"} <= known.keys()
