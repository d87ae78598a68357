"""Logs of draws: what a kill leaves, what is refused, what a merge is."""

import pytest

from fastue.certificates.draws import DrawLog, merge, read
from fastue.core.errors import DataError, UsageError

HEADER = {"digest": "abc", "total": 50, "sigma": 0.1}


def write(folder, name, rows, header=HEADER):
    with DrawLog(folder, name, header) as log:
        log.append(rows)


def test_any_kill_leaves_a_log_that_goes_on(tmp_path):
    rows = {i: (7 * i) % 50 for i in range(20)}
    write(tmp_path, "r0", rows)
    whole = (tmp_path / "draws-r0.log").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "draws-r0.log").write_bytes(whole[:cut])
        whole_rows, _ = read(tmp_path, HEADER)
        assert whole_rows.items() <= rows.items()
        assert len(whole_rows) == max(0, whole[:cut].count(b"\n") - 1)
        write(tmp_path, "r0", {i: c for i, c in rows.items() if i not in whole_rows})
        assert (tmp_path / "draws-r0.log").read_bytes() == whole


def test_merge_is_a_union(tmp_path):
    write(tmp_path / "a", "r0", {0: 1, 2: 3})
    write(tmp_path / "a", "r1", {1: 2})
    write(tmp_path / "b", "r0", {3: 4})
    rows, header = merge([tmp_path / "b", tmp_path / "a"])
    assert rows == {0: 1, 1: 2, 2: 3, 3: 4} and header["digest"] == "abc"


def test_refused(tmp_path):
    write(tmp_path / "a", "r0", {0: 1, 2: 3})
    write(tmp_path / "b", "r0", {2: 3})
    with pytest.raises(DataError, match="draw 2 is in .*a.draws-r0.log already"):
        merge([tmp_path / "a", tmp_path / "b"])
    write(tmp_path / "c", "r0", {5: 5}, HEADER | {"digest": "xyz", "sigma": 0.2})
    with pytest.raises(DataError, match="another certificate .differs in sigma"):
        merge([tmp_path / "a", tmp_path / "c"])
    log = tmp_path / "a" / "draws-r0.log"
    good = log.read_text()
    for bad in (
        good.replace("2 3", "2 4"),
        good + "5 6\n",
        good + good.splitlines()[1] + "\n",
        "7\n" + good,
    ):
        log.write_text(bad)
        with pytest.raises(DataError, match="line"):
            read(tmp_path / "a")
    log.write_text(good)
    write(tmp_path / "a", "r0", {})
    with DrawLog(tmp_path / "a", "r0", HEADER), pytest.raises(UsageError, match="another fastue"):
        DrawLog(tmp_path / "a", "r0", HEADER)
