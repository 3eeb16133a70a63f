"""Writes the reference, docs/reference/*.md: what docstrings and `--help` say. `make docs` calls it; git ignores the files.

Docstrings of this package are Markdown, so they are read with `ast` and written as they are: a heading for each name, its
head as the source has it, and its words. No module is imported but the command line's.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import click

from tinyverse.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):(.*)")
Named = ast.ClassDef | ast.FunctionDef


def write(folder: Path) -> list[str]:
    """Writes all pages into `folder` and returns their names, without suffix, in the order of the packages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"commands": "".join(commands())}
    for package in reversed(layers()):
        pages[package] = f"# Python: {package}\n\n" + "".join(map(module, _files(ROOT / "tinyverse" / package)))
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)
    return list(pages)


def layers() -> list[str]:
    """The packages, as the contract on imports orders them: the highest first."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    return [name.removeprefix("tinyverse.") for name in contract["layers"]]


def commands() -> Iterator[str]:
    """What `--help` prints, verb by verb."""
    yield "# Commands\n\nWhat `--help` says.\n\n"

    def walk(command: click.Command, words: str) -> Iterator[str]:
        context = click.Context(
            command, info_name=words, max_content_width=100, terminal_width=100, help_option_names=["-h", "--help"]
        )
        yield f"## {words}\n\n```text\n{command.get_help(context)}\n```\n\n"
        yield from below(command, words)

    def below(group: click.Command, words: str, apart: Collection[str] = ()) -> Iterator[str]:
        if isinstance(group, click.Group):
            context = click.Context(group)
            for name in group.list_commands(context):
                yield from walk(group.get_command(context, name), f"{'tinyverse' if name in apart else words} {name}")

    yield from below(cli.verbs, "tinyverse EXPERIMENT", apart=cli.GLOBALS)


def module(file: Path) -> str:
    """A module's words, and those of each public name that has some."""
    source = file.read_text()
    tree = ast.parse(source)
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    text = f"## {name}\n\n{markdown(ast.get_docstring(tree) or '')}\n\n"
    return text + "".join(_named(node, source.splitlines(), "") for node in tree.body if _public(node))


def markdown(docstring: str) -> str:
    """A docstring as Markdown: lists of arguments as lists; drawings, loops and doctests as they stand."""
    return "\n\n".join(filter(None, map(_block, docstring.split("\n\n"))))


def _block(block: str) -> str:
    lines = block.splitlines()
    heads = [SECTION.fullmatch(line) for line in lines]
    if any(heads):
        return "\n".join(_items(lines, heads))
    if all(line.startswith("    ") for line in lines):
        return f"```text\n{textwrap.dedent(block)}\n```"
    deep = any(line.startswith("    ") for line in lines) and not lines[0].startswith("* ")
    if deep or lines[0].startswith(">>> ") or any(re.search(r"\S {3,}\S", line) for line in lines):
        return f"```text\n{block}\n```"
    return block


def _items(lines: list[str], heads: list[re.Match[str] | None]) -> Iterator[str]:
    section = ""
    for line, head in zip(lines, heads):
        if head:
            section = head[1]
            yield f"\n**{section}**{head[2]}\n"
        elif item := re.fullmatch(r"    ([\w, .*]+): (.*)", line) if section != "Returns" else None:
            yield f"* `{item[1]}`: {item[2]}"
        else:
            yield ("  " if section != "Returns" else "") + line.strip()


def _named(node: Named, source: list[str], owner: str) -> str:
    words = ast.get_docstring(node)
    if words is None:
        return ""
    kind = "class " if isinstance(node, ast.ClassDef) else ""
    text = f"### {kind}{owner}{node.name}\n\n```python\n{_head(node, source)}\n```\n\n{markdown(words)}\n\n"
    if isinstance(node, ast.ClassDef):
        text += "".join(_named(child, source, f"{node.name}.") for child in node.body if _public(child))
    return text


def _head(node: Named, source: list[str]) -> str:
    """`class` or `def` with all that stands before the docstring; of a class also its fields and `__init__`."""
    begin = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    head = source[begin - 1 : node.body[0].lineno - 1]
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.AnnAssign):
                head += source[child.lineno - 1 : child.end_lineno]
            elif isinstance(child, ast.FunctionDef) and child.name == "__init__":
                head += ["", *source[child.lineno - 1 : max(child.lineno, child.body[0].lineno - 1)]]
    return textwrap.dedent("\n".join(head)).rstrip()


def _public(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")


def _files(path: Path) -> list[Path]:
    """The modules of a package, its own before those of the packages inside it; or the one module of that name."""
    return (
        sorted(path.rglob("*.py"), key=lambda file: (file.parent != path, file))
        if path.is_dir()
        else [path.with_suffix(".py")]
    )
