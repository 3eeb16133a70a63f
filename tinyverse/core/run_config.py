"""Run config: what all workers of a run must agree on. The first trainer creates it and players adopt it.

The database holds it as a flat dict of strings: format, experiment, settings (JSON) and spec (JSON).
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyverse.core.errors import RunConflict, SettingsError
from tinyverse.core.session import SessionSpec
from tinyverse.core.text import printable

FORMAT = "1"
NAMES_A_FILE = re.compile(r":|\\|\.\.|^[/~.]|\.[A-Za-z]\w*$")  # or a module; "ALE/Pong-v5" does not
LONGEST = 1 << 20  # characters of settings as JSON


def run_config(experiment: str, settings: Mapping[str, Any], spec: SessionSpec) -> dict[str, str]:
    """Returns the run config as strings: the experiment's name, the arguments of its `make_experiment`, the spec."""
    text = json.dumps(dict(settings), default=str)
    return {"format": FORMAT, "experiment": experiment, "settings": text, "spec": spec.to_json()}


def experiment_and_settings(meta: Mapping[str, str]) -> dict[str, Any]:
    """Returns {"experiment": name, "settings": dict} of a run config, as settings.json holds them; {} for an empty one.

    Raises RunConflict where a tinyverse with another format wrote it.
    """
    if not meta:
        return {}
    if meta.get("format", FORMAT) != FORMAT:
        its = printable(meta["format"], 20)
        raise RunConflict(f"the run has format {its}, this tinyverse {FORMAT}: use one version everywhere.")
    return checked({"experiment": meta.get("experiment"), "settings": decode_settings(meta.get("settings", ""))})


def decode_settings(text: str) -> Any:
    """Returns what the JSON text of settings says; None where it is none, or longer than settings are."""
    try:
        return json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        return None


def checked(run_config: Any) -> dict[str, Any]:
    """Returns what was stored as {"experiment": name, "settings": dict}, or {}; raises RunConflict where it is neither."""
    if run_config == {}:
        return {}
    if isinstance(run_config, dict):
        experiment, settings = run_config.get("experiment"), run_config.get("settings")
        if isinstance(experiment, str) and experiment.isprintable() and isinstance(settings, dict):
            return run_config
    raise RunConflict("the run config is garbled: remove the run (clear --force), or choose another --name.")


def check_can_join(
    name: str, run_config: Mapping[str, Any], experiment: str, given: Mapping[str, Any], *, force: bool = False
) -> None:
    """Checks that a worker of `experiment` with the settings in `given` may join run `name`.

    Args:
        agreed: what `experiment_and_settings` returned for the run; {} accepts every worker.
        force: accept settings that differ.
    Raises:
        RunConflict: the run has another experiment, or settings that differ. The message names both.
    """
    if not run_config:
        return
    if run_config["experiment"] != experiment:
        raise RunConflict(
            f"run {name} belongs to the experiment {run_config['experiment']}, this is {experiment}: give this one its own --name."
        )
    kept, wanted = run_config["settings"], json.loads(json.dumps(dict(given), default=str))
    others = [key for key, value in wanted.items() if kept.get(key, value) != value]
    if others and not force:
        made, asked = (printable(", ".join(f"{key}={its[key]}" for key in others), 500) for its in (kept, wanted))
        raise RunConflict(
            f"run {name} was made with {made}, this asks for {asked}: leave it out to join, choose another --name, "
            "start anew with train --fresh, or go on with the new settings with train --force."
        )


def check_trusted(stored: Mapping[str, Any], trusted: Sequence[Mapping[str, Any]], *, of_file: str = "") -> None:
    """Checks that no setting from elsewhere makes this machine import a module or open a file that nobody here has named.

    Gymnasium imports the module before a colon in an environment's id. A file of weights may come from anybody: of it, no
    text at all is taken that is not said here too.

    Args:
        stored: settings as a server or a file of weights has them.
        trusted: settings that were named here: by the command line, the experiment's defaults, the run's own folder.
        of_file: the file that they come from; "": a server.
    Raises:
        SettingsError: there is one. The message says how to agree to it.
    """
    here = [json.loads(json.dumps(dict(settings), default=str)) for settings in trusted]
    for name, value in stored.items():
        texts = list(_texts(value))
        names_something = texts if of_file else [text for text in texts if NAMES_A_FILE.search(text)]
        if names_something and all(name not in settings or settings[name] != value for settings in here):
            place = f"in {of_file}" if of_file else "on the server"
            option = shlex.join(["-o", f"{name}={value if isinstance(value, str) else ','.join(texts)}"])
            raise SettingsError(
                printable(
                    f"the setting {name}={value} {place} is not this experiment's own, and could name a module or a file "
                    f"to be run here. If you trust it, add {option}.",
                    1000,
                )
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(part)


def check_spec(name: str, meta: Mapping[str, str], spec: SessionSpec) -> None:
    """Raises RunConflict where sessions of this `spec` are not sessions of run `name`."""
    stored = SessionSpec.from_json(meta.get("spec", ""))
    wrong = stored.difference(spec.fields)
    for field in stored.bounds.keys() & spec.bounds.keys():
        if (run := str(stored.bounds[field])) != (own := str(spec.bounds[field])):
            wrong = wrong or f"session.{field} is {own}, this run's sessions have {run}."
    if wrong:
        raise RunConflict(f"run {name} cannot be joined: {wrong} Is the experiment file the same everywhere?")
