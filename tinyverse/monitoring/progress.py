"""Progress on stderr: live on a terminal, by rich; elsewhere plain lines now and then, for a log.

Progress    for a loop without an end, or with one far away: shows where it is called
Bar         for what has an end: a thread shows it, and only if the end is not reached in 2 seconds
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tinyverse.core.timing import Ticker
from tinyverse.monitoring.metrics import duration

QUICK = 2.0  # seconds; a Bar shows nothing of what takes less
REFRESH_SECONDS = 0.1

T = TypeVar("T")


class Share(NamedTuple):
    """How much of what is done."""

    what: str  # "environments"
    done: float = 0
    total: float | None = None  # None: nobody knows
    left: str = ""  # how long the rest will take, in words

    def __str__(self) -> str:
        """
        >>> print(Share("environments", 1200, 2000, "3m20s"))
        environments: 1,200 of 2,000, 3m20s left
        """
        done = f": {self.done:,}" if self.done or self.total is not None else ""
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.what}{done}{of}{self.left and f', {self.left} left'}"


class Progress:
    """Shows `render()` live on a terminal; elsewhere prints `line()` once per interval.

    Args:
        share: of what is to be done, shown below it on a terminal; None where there is no end.
        lasting: show it once more at the end, and leave it there.
    """

    def __init__(
        self, line: Callable[[], str], render: Callable[[], RenderableType] | None = None, *,
        share: Callable[[], Share | None] = lambda: None, seconds: float = 10.0, quiet: bool = False,
        lasting: bool = True,
    ) -> None:  # fmt: skip
        self._line, self._render, self._share = line, render or (lambda: Text(line())), share
        self._quiet, self._lasting, console = quiet, lasting, Console(stderr=True)
        live = Live(
            console=console, auto_refresh=False, transient=not lasting, get_renderable=self._picture,
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file must not turn up on the terminal
        )  # fmt: skip
        self._live = live if console.is_terminal and not quiet else None
        self._ticker = Ticker(0.5 if self._live else seconds)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()  # shows once more
        elif self._lasting:
            self.show()

    def turn(self) -> None:
        """Shows, if it is time to."""
        if self._ticker.due():
            self.show()

    def show(self) -> None:
        if self._live:
            self._live.refresh()
        elif not self._quiet:
            print(f"{time.strftime('%H:%M:%S')} {self._line()}", file=sys.stderr, flush=True)

    def _picture(self) -> RenderableType:
        share = self._share()
        if share is None:
            return self._render()
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(share.total, share.done, width=30, pulse=not share.done), Text(str(share)))
        return Group(self._render(), bar)


class Bar:
    """Shows how much is done, and how long the rest will take. A thread shows it, so the work need not stop for it.

        with Bar("environments", 20) as bar:
            for environment in bar.over(environments): ...

    `refresh` makes the share each time, instead of counting in `share`.
    """

    def __init__(
        self, what: str, total: float | None = None, *, quiet: bool = False, refresh: Callable[[], Share] | None = None
    ) -> None:
        self.share = Share(what, 0, total)
        self._refresh, self._began = refresh or (lambda: self.share), time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        if quiet:
            self._closing.set()

    def count(self, more: float = 1) -> None:
        """So much more is done."""
        self.share = self.share._replace(done=self.share.done + more)

    def over(self, things: Iterable[T]) -> Iterator[T]:
        """Passes things on and counts them."""
        for thing in things:
            yield thing
            self.count()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        if self._closing.wait(QUICK):
            return
        with Progress(lambda: str(self._now()), Group, share=self._now, lasting=False) as progress:
            while not self._closing.wait(REFRESH_SECONDS):
                progress.turn()

    def _now(self) -> Share:
        """The share, and how long the rest takes if it goes on like that."""
        share = self._refresh()
        if not share.done or share.total is None:
            return share
        seconds = (time.monotonic() - self._began) * (share.total - share.done) / share.done
        return share._replace(left=duration(seconds))
