"""README and docs/ are true: code and commands are executed, every other command is parsed, and every link leads somewhere.

A page is a script. Its fenced blocks run from top to bottom, in one empty folder and one namespace:

    ```python     is executed
    ```bash       each line is a command: `tinyverse …`, or `python -m pytest …`; it must end with 0

A comment in the lines above a block says what else is done with it:

    <!-- file: my_game.py -->        it is written into this file
    <!-- not run: why -->            it is only parsed: Python is compiled, options are looked up
    <!-- slow -->                    it is run with the marker `slow` only, and so is what comes after it

Commands elsewhere (blocks of another kind, `tinyverse …` within a line) are parsed: verbs, options and values are those
the command line knows, settings those of the packaged example that they are for.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch

import tinyverse
from tinyverse.cli import main as cli
from tinyverse.cli import words as cli_words
from tinyverse.database.server import private_server
from tinyverse.experiment import loader

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference")
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *DOCS]}
FENCE = re.compile(r"((?:^<!-- (?:file|not run|slow)[^\n]*-->\n+)*)^```([^\n]*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, its text, and what the comments above it say, by their first word."""

    language: str
    text: str
    marks: dict[str, str]

    @property
    def runs(self) -> bool:
        return self.language in ("python", "bash") and not {"not run", "file"} & self.marks.keys()


def blocks(text: str) -> list[Block]:
    return [
        Block(language, body, dict(re.findall(r"<!-- (file|not run|slow)(?:: (.*?))? -->", marks)))
        for marks, language, body in FENCE.findall(text)
    ]  # fmt: skip


def prose(text: str) -> str:
    """A page without its blocks, fenced or indented."""
    return re.sub(r"^    .*$", "", FENCE.sub("", text), flags=re.M)


def commands(text: str) -> Iterator[str]:
    """Every command of a page that begins with `tinyverse`, without what runs before it, its comment and its pipe."""
    lines = [line.strip() for block in blocks(text) for line in block.text.replace("\\\n", " ").splitlines()]
    lines += [line.strip() for line in re.findall(r"^    .*$", FENCE.sub("", text), re.M)]
    for line in lines:
        if found := re.match(r"(?:[A-Z_]+=\S* )*tinyverse (.*)", line):
            yield found[1]
    for span in re.findall(r"`([^`]+)`", prose(text)):
        words = span.split()
        if words[0] == "tinyverse" and len(words) > 2 and not {"…", "VERB"} & set(words):
            yield " ".join(words[1:])


def understand(line: str) -> None:
    """Raises what the command line itself would, and AssertionError for a setting that a packaged example has not."""
    words = shlex.split(re.sub(r"(?<= )[NS]\b", "1", line), comments=True)  # `-n N`
    experiment, words = cli_words.sort_out(words)
    command: click.Command = cli.verbs
    while isinstance(command, click.Group) and words and "--help" not in words:
        command = command.get_command(click.Context(command), words.pop(0))
    if {"--help", "--config"} & set(words):
        words = words[: words.index("--config")] if "--config" in words else []  # a file that is not here
    try:
        context = command.make_context(line, words, help_option_names=["-h", "--help"])
    except click.MissingParameter:  # a command is named, without what it is done to
        return
    example = loader.examples().get(experiment.removesuffix(".py"))
    for setting in context.params.get("options", ()) if example else ():
        assert setting.partition("=")[0] in settings_of(example), f"{line}: {example.name} has no such setting"


def settings_of(example: Path) -> set[str]:
    functions = [node for node in ast.parse(example.read_text()).body if isinstance(node, ast.FunctionDef)]
    (make,) = [function for function in functions if function.name == "make_experiment"]
    return {argument.arg for argument in make.args.args}


EVERY = sorted({(page, line) for page, text in PAGES.items() for line in commands(text)})


@pytest.mark.parametrize(("page", "line"), EVERY)
def test_the_command_line_understands(page: str, line: str) -> None:
    understand(line)


def test_commands_were_found_and_wrong_ones_are_not_understood() -> None:
    assert len(EVERY) > 60
    for wrong in ("atari train --no-such-option", "atari fly", "atari play -b many"):
        with pytest.raises(click.UsageError):
            understand(wrong)
    with pytest.raises(AssertionError, match="no such setting"):
        understand("atari train -o learning_speed=1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with a server of its own; afterwards all is forgotten that was imported from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    threads = torch.get_num_threads()
    with private_server() as server:
        monkeypatch.setenv("TINYVERSE_REDIS_URL", server.url)
        yield tmp_path
    torch.set_num_threads(threads)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def play(page: str, folder: Path, slow: bool) -> None:
    """Runs a page in `folder`, up to its first slow block unless `slow`."""
    namespace: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks(PAGES[page])):
        if "slow" in block.marks and not slow:
            return
        if file := block.marks.get("file"):
            (folder / file).write_text(block.text)
        elif block.runs and block.language == "python":
            exec(compile(block.text, f"{page}, block {number}", "exec"), namespace)
        elif block.runs:
            for line in block.text.replace("\\\n", " ").splitlines():
                execute(line)


def execute(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[:3] == ["python", "-m", "pytest"]:
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
        assert done.returncode == 0, done.stdout
    elif words:
        assert words[0] == "tinyverse", f"{line}: not a command of ours; say <!-- not run: why --> above the block"
        with pytest.raises(SystemExit) as ended:
            cli.main(words[1:])
        assert ended.value.code == 0, line


RUNNING = [page for page, text in PAGES.items() if page != "README.md" and any(block.runs for block in blocks(text))]
SLOW = [page for page in RUNNING if any("slow" in block.marks for block in blocks(PAGES[page]))]


@pytest.mark.parametrize("page", RUNNING)
def test_the_page_runs(page: str, folder: Path) -> None:
    play(page, folder, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", SLOW)
def test_the_whole_page_runs(page: str, folder: Path) -> None:
    play(page, folder, slow=True)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why_and_is_code(page: str) -> None:
    for block in blocks(PAGES[page]):
        assert block.marks.get("not run", "why") and block.marks.get("file", "name"), block.text
        if block.language == "python":
            compile(block.text, page, "exec")


def anchors(text: str) -> set[str]:
    """What `#…` may follow a page's name: its headings in small letters, words joined by hyphens, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head) for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[page])):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def test_the_reference_has_every_module_and_every_public_name(tmp_path: Path) -> None:
    write = runpy.run_path(str(ROOT / "docs" / "_tools" / "reference.py"))["write"]
    text = "\n".join((tmp_path / f"{page}.md").read_text() for page in write(tmp_path))
    heads = set(re.findall(r"^##+ (?:class )?(.*)$", text, re.M))
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "tinyverse").rglob("*.py")}
    assert {name.removesuffix(".__init__") for name in modules} - heads == {"tinyverse", "tinyverse.__main__"}
    assert set(tinyverse.__all__) - {"__version__"} <= heads
    assert {f"tinyverse EXPERIMENT {verb}" for verb in cli_words.VERBS} <= heads
    assert len(FENCE.findall(text)) * 2 == len(re.findall(r"^```", text, re.M))  # every block is closed


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"^\* \[[^]]*\]\(([^)#]+)\)", PAGES["docs/index.md"], re.M))
    assert listed == {str(path.relative_to(ROOT / "docs")) for path in DOCS} - {"index.md"}


def test_what_is_called_measured_is_in_the_tables() -> None:
    (rows,) = re.findall(r"^## Measured\n(.*?)^Not measured", PAGES["docs/comparison.md"], re.M | re.S)
    figures = set(re.findall(r"\b\d,\d{3}\b|\b\d\d,\d{3}\b|(?<= )\d{3}\b", rows))
    assert len(figures) > 10
    assert [figure for figure in figures if figure not in PAGES["docs/performance.md"]] == []


def test_every_metric_that_is_named_is_logged() -> None:
    source = "".join(path.read_text() for path in (ROOT / "tinyverse").rglob("*.py"))
    named = set(
        re.findall(r"`((?:eval|loss|play|policy|replay|time|train|value|vtrace)/\w+)`", "".join(PAGES.values()))
    )
    assert len(named) > 15
    parts = {name: (name, name.partition("/")[2]) for name in named}  # f"time/{stage}" is made of its stages' names
    assert [
        name for name, (whole, part) in parts.items() if f'"{whole}"' not in source and f'"{part}"' not in source
    ] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_in_a_command_is_there(page: str) -> None:
    text = PAGES[page]
    for file in re.findall(r"\bpython ((?:benchmarks|docs|tests)/\S+?\.py)", text):
        assert (ROOT / file).exists(), file
    targets = re.findall(r"^([\w./ -]+):", (ROOT / "Makefile").read_text(), re.M)
    code = [block.text for block in blocks(text)] + re.findall(r"`([^`]+)`", prose(text))
    for target in re.findall(r"^make ([\w./-]+)", "\n".join(code), re.M):
        assert target in " ".join(targets).split(), target
