"""Versions, devices, and which backend runs each op, with the reason where one does not."""

import json


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(args) -> int:
    import fastue.ops  # noqa: F401 - registers the ops
    from fastue.core import info

    print(json.dumps(info.collect(), indent=2) if args.json else info.text())
    return 0
