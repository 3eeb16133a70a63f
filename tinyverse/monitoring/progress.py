"""Progress: how far something is, on stderr: live on a terminal, plain lines now and then in a log.

Progress    for a loop without an end, or with one far away: shows where it is told to
Bar         for what has an end: shows by itself, and only if that is not reached in 2 seconds
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tinyverse.core.timing import Ticker
from tinyverse.monitoring.metrics import duration

QUICK = 2.0  # seconds; of what takes less nothing is shown
LOOK_SECONDS = 0.1

T = TypeVar("T")


class Progress:
    """Shows `render()` live on a terminal; elsewhere prints `line()` once per interval.

    Args:
        share: of what is to be done, shown below it on a terminal; None where there is no end.
        lasting: show it once more at the end, and leave it there.
    """

    def __init__(
        self,
        line: Callable[[], str],
        render: Callable[[], RenderableType] | None = None,
        *,
        share: Callable[[], Share | None] = lambda: None,
        seconds: float = 10.0,
        quiet: bool = False,
        lasting: bool = True,
    ) -> None:
        self._line, self._render, self._share = line, render or (lambda: Text(line())), share
        self._quiet, self._lasting = quiet, lasting
        console = Console(stderr=True)
        out = sys.stdout.isatty()  # what goes to a file must not turn up on the terminal
        live = Live(console=console, auto_refresh=False, transient=not lasting, redirect_stdout=out)
        self._live = live if console.is_terminal else None
        self._ticker = Ticker(0.5 if self._live else seconds)

    def __enter__(self) -> Progress:
        if self._live and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lasting:
            self.show()
        if self._live and not self._quiet:
            self._live.stop()

    def turn(self) -> None:
        """Shows, if it is time to."""
        if self._ticker.due():
            self.show()

    def show(self) -> None:
        if self._quiet:
            return
        if self._live:
            parts, share = [self._render()], self._share()
            self._live.update(Group(*parts, share.picture()) if share else parts[0], refresh=True)
        else:
            print(f"{time.strftime('%H:%M:%S')} {self._line()}", file=sys.stderr, flush=True)


class Share(NamedTuple):
    """How much of what is done."""

    what: str  # "games"
    done: float = 0
    total: float | None = None  # None: nobody knows

    def __str__(self) -> str:
        """In words.

        >>> print(Share("games", 1200, 2000))
        games: 1,200 of 2,000
        """
        if self.total is None:
            return f"{self.what}: {self.done:,}" if self.done else self.what
        return f"{self.what}: {self.done:,} of {self.total:,}"

    def picture(self, more: str = "") -> RenderableType:
        """As a bar and in words."""
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.total, completed=self.done, pulse=not self.done, width=30)
        grid.add_row(bar, Text(f"{self}{more}"))
        return grid


class Bar:
    """How much is done, and how long the rest will take. A thread shows it, so the work need not stop for it.

        with Bar("games", 20) as bar:
            for game in bar.over(games): ...

    Args:
        look: called before each look, instead of counting in `share`.
    """

    def __init__(
        self, what: str, total: float | None = None, *, quiet: bool = False, look: Callable[[], Share] | None = None
    ) -> None:
        self.share = Share(what, 0, total)
        self._look, self._quiet, self._began = look, quiet, time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def count(self, more: float = 1) -> None:
        """So much more is done."""
        self.share = self.share._replace(done=self.share.done + more)

    def over(self, things: Iterable[T]) -> Iterator[T]:
        """Passes things on and counts them."""
        for thing in things:
            yield thing
            self.count()

    def __enter__(self) -> Bar:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if not self._quiet:
            self._thread.join()

    def _run(self) -> None:
        if self._closing.wait(QUICK):
            return
        with Progress(lambda: f"{self._now()}{self._left()}", self._picture, lasting=False) as progress:
            while not self._closing.wait(LOOK_SECONDS):
                progress.turn()

    def _now(self) -> Share:
        if self._look is not None:
            self.share = self._look()
        return self.share

    def _picture(self) -> RenderableType:
        return self._now().picture(self._left())

    def _left(self) -> str:
        """How long the rest takes if it goes on like that."""
        _, done, total = self.share
        if not done or total is None:
            return ""
        return f", {duration((time.monotonic() - self._began) * (total - done) / done)} left"
