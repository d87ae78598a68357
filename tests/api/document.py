"""docs/API.md from the signatures and docstrings: `python -m tests.api.document`."""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

import fastue
from fastue import methods, ops
from fastue.protocol.check import CheckResult

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "API.md"

HEAD = """# The Python API

Written by `python -m tests.api.document` from the docstrings; a test compares. The place to begin
is [TUTORIAL.md](TUTORIAL.md). Everything is an attribute of `fastue`, loaded when it is first used.
Wrong arguments raise `fastue.core.errors.UsageError`, unusable pictures and files `DataError`;
both are `ValueError` and name the argument or the file and the fix.
"""

SECTIONS = {
    "Commands": ("protect", "verify", "attack", "certify"),
    "Methods in memory": ("emn", "pue", "uge", "keyed", "lsp"),
    "Data": ("open_dataset", "Protected", "KeyProjection"),
    "Gradients": ("gradient_match", "GradientTarget"),
}


def page() -> str:
    parts = [HEAD]
    results: dict[str, type] = {"CheckResult": CheckResult}  # of ProtectResult.check
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            thing = getattr(fastue, name)
            parts.append(entry(f"fastue.{name}", thing))
            if name in methods.METHODS:
                parts.append(f"{methods.flag_table(name)}\n")
            results |= {result.__name__: result for result in returned(thing)}
    parts.append("## What they return\n")
    parts += [fields(result) for _, result in sorted(results.items())]
    parts.append(f"## fastue.ops\n\n{prose(ops.__doc__)}\n")
    for name in sorted(name for name in vars(ops) if not name.startswith("_")):
        if inspect.isfunction(getattr(ops, name)):
            parts.append(entry(f"fastue.ops.{name}", getattr(ops, name)))
    parts.append("`fastue.use_backend` is `fastue.ops.use_backend`.\n")
    return "\n".join(parts)


def entry(name: str, thing: typing.Any) -> str:
    """Heading, signature as it stands in the source, docstring."""
    function = thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing)
    return f"### {name}\n\n```python\n{signature(name, function)}\n```\n\n{prose(thing.__doc__)}\n"


def definition(function: typing.Callable) -> ast.FunctionDef:
    """A function as its source has it: a default that is a lambda has no other stable text."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def signature(name: str, function: typing.Callable) -> str:
    node = definition(function)
    words = list(_arguments(node.args, inspect.signature(function).parameters))
    constructs = node.name == "__init__"
    arrow = f" -> {ast.unparse(node.returns)}" if node.returns and not constructs else ""
    line = f"{name}({', '.join(words)}){arrow}"
    if len(line) <= 88:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){arrow}"])


def _arguments(
    args: ast.arguments, parameters: typing.Mapping[str, inspect.Parameter]
) -> Iterator[str]:
    first = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(first) - len(args.defaults)) + args.defaults + args.kw_defaults
    for argument, default in zip([*first, *args.kwonlyargs], defaults, strict=True):
        if argument.arg == "self":
            continue
        if argument in args.kwonlyargs[:1] and not args.vararg:
            yield "*"
        text = argument.arg
        if argument.annotation:
            text += f": {ast.unparse(argument.annotation)}"
        if default is not None:
            text += " = " if argument.annotation else "="
            # `VictimConfig.epochs` tells a reader nothing: its value does.
            named = any(isinstance(part, ast.Attribute) for part in ast.walk(default))
            value = repr(parameters[argument.arg].default) if named else ast.unparse(default)
            text += value.replace("'", '"')
        yield text
    if args.kwarg:
        yield f"**{args.kwarg.arg}"


def returned(thing: typing.Any) -> Iterator[type]:
    """The dataclasses that a function returns, by their names in its module."""
    if not inspect.isfunction(thing):
        return
    annotation = definition(thing).returns
    for name in re.findall(r"\w+", ast.unparse(annotation) if annotation else ""):
        result = getattr(inspect.getmodule(thing), name, None)
        if dataclasses.is_dataclass(result):
            yield result


def fields(result: type) -> str:
    """Docstring and fields of a dataclass, and what its properties and methods say."""
    lines = [f"{field.name}: {_kind(field.type)}" for field in dataclasses.fields(result)]
    for name, member in sorted(vars(result).items()):
        getter = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(getter):
            call = "" if isinstance(member, property) else "()"
            summary = (inspect.getdoc(getter) or "").split("\n")[0]
            lines.append(f"{name}{call}" + (f"  # {summary}" if summary else ""))
    text = "\n".join(lines)
    # A dataclass without a docstring of its own gets its signature as one.
    doc = "" if result.__doc__.startswith(f"{result.__name__}(") else f"{prose(result.__doc__)}\n\n"
    return f"### {result.__name__}\n\n{doc}```python\n{text}\n```\n"


def _kind(kind: typing.Any) -> str:
    name = kind.__name__ if inspect.isclass(kind) and not typing.get_args(kind) else str(kind)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", name)


def prose(doc: str | None) -> str:
    """Paragraphs as they are; tables and formulas, which live by their columns, in fences."""
    paragraphs = inspect.cleandoc(doc or "").split("\n\n")
    return "\n\n".join(map(_paragraph, paragraphs))


def _paragraph(text: str) -> str:
    columns = any(re.search(r"^ |\S {2,}\S", line) for line in text.split("\n"))
    return f"```text\n{text}\n```" if columns else text


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
