"""Run config: what all workers of a run must agree on. The first trainer creates it and players adopt it.

The database holds it as a flat dict of strings: format, experiment, settings (JSON) and spec (JSON).
"""

import json
from collections.abc import Mapping
from typing import Any

from tinyverse.core.errors import RunConflict
from tinyverse.core.session import SessionSpec

FORMAT = "1"


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
    if meta["format"] != FORMAT:
        raise RunConflict(f"the run has format {meta['format']}, this tinyverse {FORMAT}: use one version everywhere.")
    return {"experiment": meta["experiment"], "settings": json.loads(meta["settings"])}


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
        made, asked = (", ".join(f"{key}={settings[key]}" for key in others) for settings in (kept, wanted))
        raise RunConflict(
            f"run {name} was made with {made}, this asks for {asked}: leave it out to join, choose another --name, "
            "start anew with train --fresh, or go on with the new settings with train --force."
        )


def check_spec(name: str, meta: Mapping[str, str], spec: SessionSpec) -> None:
    """Raises RunConflict where sessions of this `spec` are not sessions of run `name`."""
    stored = SessionSpec.from_json(meta["spec"])
    wrong = stored.difference(spec.fields) or stored.other_bounds(spec)
    if wrong:
        raise RunConflict(f"run {name} cannot be joined: {wrong} Is the experiment file the same everywhere?")
