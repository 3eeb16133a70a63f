"""What a terminal shows of a rich renderable."""

from __future__ import annotations

import io

from rich.console import Console


def shown(renderable, width=120):
    """As plain text."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()
