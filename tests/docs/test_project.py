"""The files that strangers look for: valid, of one version, and with links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tinyverse

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "README.md", "SECURITY.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", [".github/workflows/ci.yml"]),
        ("github-issue-forms", [".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/idea.yml"]),
        ("citation-file-format", ["CITATION.cff"]),
    ],
)
def test_it_is_what_its_schema_says(schema: str, files: list[str]) -> None:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {tinyverse.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("https:") or (ROOT / target).exists(), target


def test_all_brings_what_exists() -> None:
    named = {name for line in PROJECT["optional-dependencies"]["all"] for name in re.findall(r"[\w-]+", line.split("[")[1].split("]")[0])}  # fmt: skip
    assert named and named <= PROJECT["optional-dependencies"].keys()


def test_every_extra_is_on_the_page_of_the_installation() -> None:
    page = (ROOT / "docs" / "installation.md").read_text()
    assert [name for name in PROJECT["optional-dependencies"] if f"`{name}`" not in page] == []


def test_every_pinned_tool_of_dev_is_in_the_constraints() -> None:
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = {re.split(r"[\[<>=;]", line)[0].lower() for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]}  # fmt: skip
    assert wanted - pinned == set()
