"""The `fastue` command. Exit codes: 0 done, 1 found something wrong, 2 usage, 3 bad data, 4 interrupted, resumable."""

import argparse
import importlib
import sys

from fastue import __version__
from fastue.core.errors import FastueError, UsageError
from fastue.core.heap import keep_freed_memory

COMMANDS = {
    "protect": "make a protected copy of a data set",
    "attack": "train victims on the written files and report what they learn",
    "certify": "bound what networks near a surrogate can know of clean pictures",
    "convert": "a data set or its noise in another format",
    "purify": "protected pictures through a diffusion purifier, as an adversary would",
    "verify": "decode every written picture again and check it",
    "demo": "the whole line on embedded pictures",
    "info": "versions, devices, and which backend runs each op, with reasons",
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says nothing of a default that is None: the text of such a flag says what happens then."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fastue", description="Make image data sets unlearnable, and check it."
    )
    parser.add_argument("--version", action="version", version=f"fastue {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    argv = sys.argv[1:] if argv is None else argv
    asked = next((word for word in argv if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=_Help)
        if name == asked:  # only the command asked for is imported: `fastue --help` needs no torch
            module = importlib.import_module(f"fastue.cli.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    try:
        args = parser.parse_args(_with_config_file(argv))
        keep_freed_memory()
        return args.run(args)
    except FastueError as error:
        print(f"fastue: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\nfastue: interrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 4


def _with_config_file(argv: list[str]) -> list[str]:
    """The flags of `--config run.yaml` put in front of those of the command line, which therefore win."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    config = finder.parse_known_args(argv)[0].config
    if config is None:
        return argv
    import yaml

    try:
        with open(config, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {config}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {config}: must hold `name: value` lines, one for each flag")
    flags: list[str] = []
    for name, value in values.items():
        flag = "--" + str(name).replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    command = next((i for i, word in enumerate(argv) if word in COMMANDS), -1)
    return [*argv[: command + 1], *flags, *argv[command + 1 :]]
