"""`tinyverse.run` and `tinyverse.load`: for scripts and notebooks what the commands are for a terminal."""

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyverse.agents.agent import Agent
from tinyverse.cli.context import RUNS, RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.cli.run import run as run_here
from tinyverse.core import system
from tinyverse.core.errors import NoWeights, SettingsError
from tinyverse.core.weights import WeightsFile
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.monitoring.plot import curve, plot_curves
from tinyverse.trainer.run_folder import RunFolder

MADE = RUNS / ".experiments"  # modules around functions that are in no file which can be imported

# the pickle is the user's own function, written and read on this machine; nothing of it comes from a network
MODULE = '''\
"""Written by tinyverse.run: the function beside it, as it was in a notebook or script."""

from pathlib import Path

import cloudpickle

make_experiment = cloudpickle.loads(Path(__file__).with_suffix(".pickle").read_bytes())
'''


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """What a run has learned so far: mean returns of the last 100 episodes over steps. A notebook shows it as a picture."""

    folder: Path
    steps: np.ndarray  # [N]
    returns: np.ndarray  # [N]

    def _repr_png_(self) -> bytes | None:
        if not len(self.steps):
            return None
        with tempfile.TemporaryDirectory() as place:
            return plot_curves({self.folder.name: [self.folder]}, Path(place) / "curve.png").read_bytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A run's agent with its newest or best weights, and the experiment that made it."""

    agent: Agent
    experiment: Experiment
    settings: dict[str, Any]
    version: int


def run(
    make_experiment: Callable[..., Experiment] | str,
    *,
    players: int = 1,
    minutes: float | None = None,
    updates: int | None = None,
    name: str = "",
    seed: int | None = None,
    fresh: bool = False,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **more_settings: Any,
) -> Curve:
    """Plays and trains on this machine, as `tinyverse EXPERIMENT run` does, and returns the curve.

        curve = tinyverse.run(make_experiment, players=2, minutes=5, learning_rate=1e-3)

    A run of the same name goes on where it ended. An interrupt ends it as Ctrl-C does: nothing is lost.

    Args:
        make_experiment: the function, also one defined in a notebook; or what stands on the command line: a file, a
            module, an example's name.
        players: processes that play; 0: play and train in this process, in lockstep (`local`).
        name: of the run [the file's; of a function in a notebook or script "notebook"].
        fresh: begin anew; an earlier run of this name is put aside.
        more_settings: arguments of `make_experiment`; those that are called as a keyword here go into `settings`.
    Raises:
        TinyverseError: as the command says it.
    """
    if minutes is None and updates is None:
        raise SettingsError("say when to end: tinyverse.run(make_experiment, minutes=5), or updates=1000.")
    system.prepare()
    experiment = make_experiment if isinstance(make_experiment, str) else _file_of(make_experiment, name or "notebook")
    context = RunContext(experiment, name, {**(settings or {}), **more_settings}, seed=seed, quiet=quiet)
    _refuse_either_way(context, {
        "players": players, "minutes": minutes, "updates": updates, "name": name, "seed": seed, "fresh": fresh, "quiet": quiet,
    })  # fmt: skip
    options = TrainOptions(minutes=minutes, updates=updates, resume=False if fresh else None)
    if players:
        run_here.callback(context, options, players=players)
    else:
        local.callback(context, options)
    try:
        steps, returns = curve(context.folder.path)
    except SettingsError:  # no episode has ended yet
        steps, returns = np.zeros(0), np.zeros(0)
    return Curve(context.folder.path, steps, returns)


def _refuse_either_way(context: RunContext, here: Mapping[str, Any]) -> None:
    """Raises SettingsError for a keyword that could be meant for the experiment, unless that has been given its own."""
    defaults = run.__kwdefaults__ or {}
    for name in set(here).intersection(loader.defaults(context.module)).difference(context.settings):
        if here[name] != defaults[name]:
            raise SettingsError(
                f"{name} is a keyword of tinyverse.run and a setting of {context.title}: give the setting as "
                f"settings={{{name!r}: …}}; with it, {name}={here[name]!r} is the keyword."
            )


def load(folder: Path | str, *, experiment: str | None = None, best: bool = False) -> Loaded:
    """The agent of a run's folder, ready to play.

        agent = tinyverse.load("runs/pong").agent
        actions, state, _ = agent.act(observations, agent.initial_state(n), is_first=np.ones(n, bool))

    The run's experiment is imported, which runs its code: load only what you would run.

    Args:
        experiment: its file or module, where it is not where it was trained from.
        best: the weights that evaluated best (`eval --every`) instead of the newest.
    Raises:
        NoWeights: nothing was learned there yet, or with `best` nothing evaluated.
        SettingsError: the folder does not say where its experiment is.
        ExperimentError: the experiment cannot be imported or built.
    """
    run_folder = RunFolder(folder)
    file = run_folder.best if best else run_folder.newest()
    if file is None or not file.exists():
        wanted = "best weights" if best else "checkpoint"
        raise NoWeights(f"{folder} holds no {wanted}. Is it the folder of a trained run?")
    if experiment is None:
        starts = run_folder.rows("starts")
        if not starts:
            call = f"load({str(folder)!r}, experiment='my_game.py')"
            raise SettingsError(f"{folder} does not say where its experiment is: {call}.")
        experiment = starts[-1]["source"]
    found = WeightsFile.read(file)
    module = loader.load_module(experiment)
    settings = loader.resolve(module, (found.run_config or run_folder.settings())["settings"])
    made = loader.build(module, settings)
    agent = made.agent()
    agent.set_weights(found.weights)
    return Loaded(agent, made, settings, found.version)


def _file_of(function: Callable[..., Experiment], name: str) -> str:
    """A file that players can import the function from: its module's own, or one around a copy of the function.

    The copy holds what it refers to in a notebook or script. It stays on this machine, in a file that only this user
    writes; over the network to players elsewhere goes no code.
    """
    module = sys.modules.get(function.__module__)
    own = getattr(module, "__file__", None)
    if own and function.__module__ != "__main__" and getattr(module, "make_experiment", None) is function:
        return own
    import cloudpickle

    MADE.mkdir(parents=True, exist_ok=True)
    file = MADE / f"{name}.py"
    file.write_text(MODULE)
    file.with_suffix(".pickle").write_bytes(cloudpickle.dumps(function))
    return str(file)
