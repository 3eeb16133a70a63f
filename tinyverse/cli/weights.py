"""Finds the weights that were asked for: of a file, the best evaluated, a version, or the newest there are."""

import contextlib
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from tinyverse.cli.context import RunContext
from tinyverse.core.errors import NoWeights, ServerError, SettingsError
from tinyverse.core.run_config import check_can_join, experiment_and_settings
from tinyverse.core.weights import WeightsFile, decode_weights
from tinyverse.database.heartbeat import StopSignal
from tinyverse.monitoring.writers import TensorBoard


@dataclasses.dataclass
class WeightsTracker:
    """What the last search for weights found."""

    version: int | None = None
    stop: StopSignal | None = None  # of the run; None before the first reading
    complaint: str = ""
    place: str = ""  # where they were newest, as was said
    checkpoint: tuple[Any, ...] = ()  # the folder's newest, and when it was written
    kept: WeightsFile | None = None  # its weights
    events: TensorBoard | None = None  # where evaluations show, once there is one

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop since the first reading."""
        return self.stop is not None and self.stop.is_set


def weights_for(context: RunContext, weights: str | None, tracker: WeightsTracker) -> WeightsFile | None:
    """The weights asked for, with all settings resolved: of a file, the best, a version of the database or the folder,
    else the newest. None where they are those found last.

    Raises NoWeights where there are none at all, SettingsError where not those that were asked for.
    """
    found = _find(context, weights, tracker)
    if found is None or found.version == tracker.version:
        return None
    run_config = found.run_config or context.folder.settings()  # an old checkpoint does not say its own
    check_can_join(context.run, run_config, context.title, context.given)
    file = "" if weights is None or weights == "best" or weights.isdigit() else weights
    foreign = file and context.folder.path.resolve() not in Path(file).resolve().parents
    settings = context.resolved(run_config.get("settings", {}), of_file=file if foreign else "")
    return found._replace(run_config={"experiment": context.title, "settings": settings})


def _find(context: RunContext, weights: str | None, tracker: WeightsTracker) -> WeightsFile | None:
    folder, title = context.folder, context.title
    check_can_join(context.run, folder.settings(), title, context.given)
    if weights is None or weights.isdigit():
        return _version(context, None if weights is None else int(weights), tracker)
    path = folder.best if weights == "best" else Path(weights)
    if not path.is_file():
        raise SettingsError(
            f"run {context.run} has no best weights in {folder.path}/ yet; eval --every keeps them: {context.command('eval', '--every')}"
            if weights == "best"
            else f"--weights {weights} is neither a file here nor 'best' nor the number of a version. Checkpoints lie in {folder.checkpoints}/."
        )
    found = WeightsFile.read(path)
    if (its := found.run_config.get("experiment", title)) != title:
        command = shlex.join(["tinyverse", its[:100], "eval", "--weights", weights])
        raise SettingsError(f"--weights {weights} is of the experiment {its[:100]}, this is {title}: {command}")
    return found


def _version(context: RunContext, wanted: int | None, tracker: WeightsTracker) -> WeightsFile | None:
    """A version of the database or of the folder; where none is wanted, the newer of what both have."""
    folder, newest = context.folder, _newest_kept(context, tracker)
    kept = newest if newest is not None and wanted in (None, newest.version) else None
    needless = () if context.names_server or (wanted is not None and kept is None) else (ServerError,)
    with contextlib.suppress(*needless), context.connected(start=False) as database:
        state, meta = database.state(), database.meta()
        tracker.stop = tracker.stop or StopSignal(state)
        tracker.stop.hear(state)
        ahead = kept is not None and kept.version > state.version  # `local` went on, or the server lost some
        if tracker.stopped or (wanted is None and meta and not ahead and state.version == tracker.version):
            return None
        if wanted is None and kept is not None and state.version >= 0:
            _say_which(context, tracker, (kept.version, f"{folder.path}/"), (state.version, "the server"))
        blob = None if ahead else database.get_weights(version=wanted)
        if blob is not None and meta:
            arrays, numbers = decode_weights(blob[1])
            return WeightsFile(arrays, blob[0], numbers["update"], numbers["step"], experiment_and_settings(meta))
        if wanted is not None and kept is None and (meta or newest):
            there = max(state.version, newest.version if newest else -1)
            raise SettingsError(f"run {context.run} has no version {wanted}; the newest is {there}, and 3 are kept.")
    if kept is None:
        nowhere = f"run {context.run} has no weights yet, neither on a server nor in {folder.path}/"
        raise NoWeights(f"{nowhere}. Train it first: {context.command('train')}")
    return kept


def _newest_kept(context: RunContext, tracker: WeightsTracker) -> WeightsFile | None:
    """The weights of the folder's newest checkpoint that can be read; each is read once."""
    newest = context.folder.newest()
    checkpoint = (newest, newest.stat().st_mtime_ns) if newest else ()
    if checkpoint != tracker.checkpoint:
        contents = context.folder.load()
        tracker.kept, tracker.checkpoint = WeightsFile.of_checkpoint(contents) if contents else None, checkpoint
    return tracker.kept


def _say_which(context: RunContext, tracker: WeightsTracker, *there: tuple[int, str]) -> None:
    """Says which of two versions is taken and from where, if they differ; again only if it is the other place's."""
    (version, place), (older, other) = sorted(there, reverse=True)
    if version != older and place != tracker.place:
        context.say(f"taking version {version}, from {place}; {other} has {older} (--weights {older} takes that)")
        tracker.place = place
