"""RunContext: what every command about a run is told: which experiment, which run, which server."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tinyverse.core.errors import RunConflict, ServerError, SettingsError, TinyverseError
from tinyverse.core.run_config import check_can_join, check_trusted, experiment_and_settings
from tinyverse.core.text import did_you_mean, printable
from tinyverse.database import server as redis_server
from tinyverse.database import server_config
from tinyverse.database.base import Database
from tinyverse.database.connection import open_database, public
from tinyverse.database.redis import list_runs
from tinyverse.experiment import loader
from tinyverse.monitoring import status
from tinyverse.monitoring.progress import Bar, Share
from tinyverse.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from tinyverse.agents.torch_agent import TorchAgent

RUNS, RECORDS = Path("runs"), Path("records")


@dataclasses.dataclass
class RunContext:
    """Which experiment, which run and which server a command is about, and where that is found."""

    experiment: str
    name: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # -o and --config
    redis: str | None = None
    host: str | None = None
    port: int | None = None
    password: str | None = None
    database: str | None = None
    seed: int | None = None
    quiet: bool = False
    bars: bool = True  # whether it is shown how far something is

    def __post_init__(self) -> None:
        if self.run and not re.fullmatch(r"(?!\.+$)[A-Za-z0-9._-]{1,100}", self.run):  # a folder has this name too
            raise SettingsError(
                f"the run's name {self.run!r} may have letters, digits, '.', '_' and '-' only, at most 100. Choose another with --name."
            )

    @functools.cached_property
    def module(self) -> ModuleType:
        return loader.load_module(self.experiment)

    @functools.cached_property
    def given(self) -> dict[str, Any]:
        """The settings asked for, checked and converted."""
        return loader.resolve_given(self.module, self.settings)

    @property
    def names_server(self) -> bool:
        """Whether an option or the environment names a server."""
        named = map(os.environ.get, ("TINYVERSE_REDIS_URL", "REDIS_URL"))
        return any([self.redis, self.host, self.port, *named])

    @property
    def source(self) -> str:
        """Where the experiment can be found from any folder: the path of its file, or its module's name."""
        return str(Path(self.module.__file__).resolve()) if self.module.__file__ else self.module.__name__

    @property
    def title(self) -> str:
        """The experiment's own name, by which a run knows it."""
        return Path(self.experiment).stem if self.experiment.endswith(".py") else self.experiment.split(".")[-1]

    @property
    def run(self) -> str:
        return self.name or self.title

    @property
    def folder(self) -> RunFolder:
        return RunFolder(RUNS / self.run)

    def resolved(self, run_config: Mapping[str, Any], of_file: str = "") -> dict[str, Any]:
        """All settings: defaults, over them what the run has agreed on, over that what was asked for.

        Args:
            of_file: a file of weights from anywhere, which `run_config` comes from.
        """
        if gone := sorted(run_config.keys() - loader.defaults(self.module).keys()):
            raise RunConflict(
                f"run {self.run} was made with {printable(', '.join(gone))}, which {self.title} has no longer: choose another --name, "
                "or start anew with train --fresh."
            )
        own = self.folder.settings().get("settings", {}) if run_config else {}
        check_trusted(run_config, [self.given, loader.defaults(self.module), own], of_file=of_file)
        return loader.resolve(self.module, {**run_config, **self.given})

    def make_agent(self, meta: Mapping[str, str]) -> TorchAgent:
        """The experiment's agent, built here with the settings of the run config `meta`; its weights are not the run's."""
        from tinyverse.agents.torch_agent import TorchAgent

        run_config = experiment_and_settings(meta)
        check_can_join(self.run, run_config, self.title, self.given)
        agent = loader.build(self.module, self.resolved(run_config["settings"])).agent()
        if not isinstance(agent, TorchAgent):
            raise SettingsError(f"{type(agent).__name__} is no TorchAgent and has none.")
        return agent

    def command(self, *words: str) -> str:
        """A command about this run, as a person types it: in a message it must not be one about another run or server."""
        named = ["--name", self.name] if self.name and self.name != self.title else []
        place = {
            "--redis": self.redis and public(self.redis),
            "--host": self.host,
            "--port": self.port,
            "--database": self.database,
        }
        named += [str(word) for option, value in place.items() if value for word in (option, value)]
        return printable(shlex.join(["tinyverse", self.experiment, *words, *named]), 1000)

    def fresh_seed(self) -> int:
        return secrets.randbits(31) if self.seed is None else self.seed

    def connected(self, start: bool = True) -> contextlib.closing[Database]:
        """The run's database; starts this user's local server if there is no other."""
        return contextlib.closing(open_database(self.server(start), self.run, database=self.database))

    @contextlib.contextmanager
    def known(self) -> Iterator[Database]:
        """The database of a run that is there, or that somebody waits for; else RunConflict names the runs there are."""
        with self.connected(start=False) as database:
            if not (database.meta() or database.workers()):
                others = [] if self.database else self.runs()
                there = f"there are {', '.join(others)}" if others else "there is none"
                hint = did_you_mean(self.run, others)
                raise RunConflict(f"there is no run {self.run} in the database; {there}.{hint} Choose one with --name.")
            yield database

    @contextlib.contextmanager
    def seen(self, waits: bool = False) -> Iterator[Database]:
        """The database of a run, as `known`; where no server knows it, what its folder on this machine says.

        Args:
            waits: of a server that does not know the run, its empty database: a trainer may create it yet.
        """
        with contextlib.ExitStack() as stack:
            try:
                database = stack.enter_context(self.known())
            except (RunConflict, ServerError) as error:
                kept = status.of_folder(self.folder)
                is_local = kept is not None and "local" in self.folder.settings().get("argv", [])
                may_come = waits and isinstance(error, RunConflict)
                if kept is not None and (is_local or not (self.names_server or self.database or may_come)):
                    self.say(f"no server knows run {self.run}: this is what {self.folder.path}/ says")
                    database = kept
                elif may_come:
                    database = stack.enter_context(self.connected(start=False))
                else:
                    raise
            yield database

    def runs(self) -> list[str]:
        """The names of the runs on the server."""
        return list_runs(self.address(start=False).url)

    def address(self, start: bool) -> redis_server.Address:
        """The server that is named, else this user's local one."""
        return redis_server.find_server(self.redis, self.host, self.port, self.password, start=start)

    def server(self, start: bool) -> str:
        """The URL of the run's server; "" where the database is the user's own."""
        if self.database and not (self.redis or self.host or self.port):
            return ""
        if not self.names_server and (url := _server_of_a_running_run(self.folder)):
            return url
        address = self.address(start)
        if address.source == "started":
            self.say(f"started a local server, {address}; it stays for others (tinyverse server stop ends it)")
        return address.url

    def bar(self, what: str, total: float | None = None, refresh: Callable[[], Share] | None = None) -> Bar:
        """Shows how far something is, if it takes long."""
        return Bar(what, total, quiet=self.quiet or not self.bars, refresh=refresh)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"tinyverse: {text}", file=sys.stderr, flush=True)


def without_secrets(words: Sequence[str]) -> list[str]:
    """A command's words without the server's address and password, to be kept in a file.

    >>> without_secrets(["atari.py", "train", "--redis", "redis://:secret@10.0.0.5", "--password=secret", "-b", "16"])
    ['atari.py', 'train', '-b', '16']
    """
    kept, secret = [], False
    for word in words:
        if not (secret or word.startswith(("--redis=", "--password="))) and word not in ("--redis", "--password"):
            kept.append(word)
        secret = word in ("--redis", "--password")
    return kept


def positive(**numbers: float | None) -> None:
    """Raises SettingsError for a count less than 1, or a fraction that is not above 0."""
    for name, number in numbers.items():
        if number is not None and number <= 0:
            least = "at least 1" if isinstance(number, int) else "more than 0"
            raise SettingsError(f"{name.replace('_', ' ')} is {number}; it must be {least}.")


def _server_of_a_running_run(folder: RunFolder) -> str | None:
    try:
        url = json.loads(server_config.announcement(folder.path).read_text())["url"]
        redis_server.find_server(url)
    except (OSError, ValueError, KeyError, TinyverseError):
        return None
    return str(url)
