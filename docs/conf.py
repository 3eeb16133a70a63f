"""Sphinx's settings for `make docs`. Pages are plain Markdown; what Sphinx needs beyond that is made here.

The navigation is index.md itself: each of its headings with the pages listed under it.
"""

import re
import runpy
from pathlib import Path

HERE = Path(__file__).parent

project = "tinyverse"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "tinyverse"
html_copy_source = html_show_copyright = False
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may skip a level of headings


def setup(app):
    pages = runpy.run_path(str(HERE / "_tools" / "reference.py"))["write"](HERE / "reference")
    reference = _tree("Reference", [f"reference/{page}" for page in pages])

    def read(app, page, source):
        source[0] = re.sub(r"\[([^]]+)\]\((\.\./[^)#]*)[^)]*\)", lambda link: _outside(page, *link.groups()), source[0])
        if page == "index":
            source[0] += "".join(_trees(source[0])) + reference

    app.connect("source-read", read)


def _trees(text):
    """A hidden table of contents for each heading of index.md and the pages linked under it."""
    for part in text.split("\n## ")[1:]:
        yield _tree(part.splitlines()[0], re.findall(r"^\* \[[^]]*\]\(([^)#:]+)\.md\)", part, re.M))


def _tree(caption, pages):
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def _outside(page, words, target):
    """A link as it is, but only its words where it leads out of this folder: the site does not hold what is there."""
    inside = (HERE / page).parent.joinpath(target).resolve().is_relative_to(HERE)
    return f"[{words}]({target})" if inside else words
