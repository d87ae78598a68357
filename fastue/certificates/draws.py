"""Logs of draws: appended safely, resumed, merged from several processes or machines.

A directory holds `draws-*.log`. The first line of a log is JSON with the digest of everything the
counts depend on, the number of pictures and what a reader wants to know; each further line is
`draw correct checksum`. A line that a kill cut short does not count. A draw that is there twice or
a log with another digest is refused: a certificate needs one declared set.
"""

import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Any

from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import make_folder, sync_folder, writing

PATTERN = "draws-*.log"


def read(
    folder: Path, header: dict[str, Any] | None = None
) -> tuple[dict[int, int], dict[str, Any]]:
    """({draw: correct}, header) of all logs in `folder`, all of the digest of `header` if any."""
    return merge([folder], header)


def merge(
    folders: list[Path], header: dict[str, Any] | None = None
) -> tuple[dict[int, int], dict[str, Any]]:
    """The union of the logs in several folders.

    Raises DataError for a draw that is there twice and for foreign logs.
    """
    rows: dict[int, int] = {}
    origin: dict[int, Path] = {}
    for path in sorted(p for folder in folders for p in Path(folder).glob(PATTERN)):
        log_rows, log_header = _read_log(path)
        if log_header is None:  # killed before its first line was whole: it holds nothing
            continue
        header = header or log_header
        if log_header["digest"] != header["digest"]:
            raise DataError(
                f"{path}: its draws are of another certificate "
                f"(differs in {_differences(log_header, header)}); "
                "keep the logs of each certificate in a directory of their own"
            )
        for draw, correct in log_rows.items():
            if draw in rows:
                raise DataError(
                    f"{path}: draw {draw} is in {origin[draw]} already; a draw may count once"
                )
            rows[draw], origin[draw] = correct, path
    return rows, header or {}


class DrawLog:
    """Appends rows to `folder/draws-<name>.log`; one process at a time.

    Raises UsageError while another process writes there. What an earlier kill cut short is removed.
    """

    def __init__(self, folder: Path, name: str, header: dict[str, Any]):
        make_folder(folder)
        self.path = Path(folder) / f"draws-{name}.log"
        with writing(self.path):
            self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UsageError(f"{self.path}: another fastue is writing there") from error
        content = self.path.read_bytes()
        whole_lines = content.rfind(b"\n") + 1
        if whole_lines < len(content):
            self._file.truncate(whole_lines)
        if not whole_lines:
            self._write(json.dumps(header, sort_keys=True) + "\n")
            sync_folder(self.path.parent)

    def append(self, rows: dict[int, int]) -> None:
        """On the disk when this returns."""
        self._write("".join(f"{_line(draw, correct)}\n" for draw, correct in rows.items()))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "DrawLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write(self, text: str) -> None:
        with writing(self.path):
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())


def _differences(log_header: dict[str, Any], header: dict[str, Any]) -> str:
    """The settings that tell two digests apart, as far as both headers name them."""
    keys = [key for key in header if key in log_header and key != "digest"]
    return ", ".join(key for key in keys if log_header[key] != header[key]) or "its digest"


def _line(draw: int, correct: int) -> str:
    text = f"{draw} {correct}"
    return f"{text} {zlib.crc32(text.encode()):08x}"


def _read_log(path: Path) -> tuple[dict[int, int], dict[str, Any] | None]:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    lines = text.split("\n")[:-1]  # what follows the last line end was cut short
    if not lines:
        return {}, None
    rows: dict[int, int] = {}
    try:
        header = json.loads(lines[0])
        total = int(header["total"])
        header["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: line 1 is not the header of a log of draws") from error
    for number, line in enumerate(lines[1:], 2):
        try:
            draw, correct = (int(part) for part in line.split(" ")[:2])
        except ValueError:
            draw = correct = -1  # refused below
        if line != _line(draw, correct) or not (draw >= 0 and 0 <= correct <= total):
            raise DataError(
                f"{path}: line {number} is damaged; delete it (its draw is made again) "
                "and run again"
            )
        if draw in rows:
            raise DataError(
                f"{path}: line {number}: draw {draw} is there already; a draw may count once"
            )
        rows[draw] = correct
    return rows, header
