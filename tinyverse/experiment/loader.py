"""Loader: finds the experiment module that a command names, and converts its settings.

An experiment is a file, a dotted module, or the name of a packaged example. If its code raises, the message has the
traceback from the user's first frame on.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tinyverse.core.errors import ExperimentError, SettingsError, TinyverseError
from tinyverse.core.text import did_you_mean

if TYPE_CHECKING:
    from tinyverse.experiment.experiment import Experiment

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_PREFIX = "tinyverse_experiment_"  # names of modules loaded from files begin so


def load_module(name: str) -> ModuleType:
    """Imports the module that `name` stands for.

    Raises:
        ExperimentError: there is none, its import raised, or it has no make_experiment.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            if path.stem not in examples() or path.parent != Path():
                raise ExperimentError(f"there is no file {name}.{_hint(name)}")
            print(f"tinyverse: there is no {name} here, so this is the packaged example of that name.", file=sys.stderr)
            path = examples()[path.stem]
        module = _guarded(lambda: _from_file(path), name)
    elif name in examples():
        module = _guarded(lambda: _from_file(examples()[name]), name)
    elif _is_module(name):
        module = _guarded(lambda: importlib.import_module(name), name)
    else:
        raise ExperimentError(f"{name} is no file, no module and no packaged example.{_hint(name)}")
    if not callable(getattr(module, "make_experiment", None)):
        raise ExperimentError(f"{name} has no function make_experiment(); define one that returns an Experiment.")
    return module


def is_experiment(name: str) -> bool:
    """Tells whether `load_module` would find a module for this name."""
    return Path(name).is_file() or Path(name).stem in examples() or _is_module(name)


def examples() -> dict[str, Path]:
    """The packaged examples: name -> file. What defines no make_experiment is no experiment."""
    spec = importlib.util.find_spec("tinyverse_examples")
    folders = spec.submodule_search_locations if spec else [str(Path(__file__).parents[2] / "examples")]
    files = [file for folder in folders or [] for file in sorted(Path(folder).glob("*.py"))]
    return {file.stem: file for file in files if "def make_experiment(" in file.read_text(encoding="utf-8")}


def defaults(module: ModuleType) -> dict[str, Any]:
    """Returns the settings of an experiment module with their defaults: the arguments of make_experiment.

    Raises:
        ExperimentError: an argument has no default.
    """
    parameters = inspect.signature(module.make_experiment).parameters
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            raise ExperimentError(f"make_experiment({name}) has no default; give every argument one: it is a setting.")
    return {name: parameter.default for name, parameter in parameters.items()}


def resolve(module: ModuleType, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings: the `given` ones, converted to the types of the defaults, and defaults for the others.

    Raises:
        SettingsError: a name is unknown, a value cannot be converted, or is none that a run's config can hold.
    """
    settings = defaults(module)
    for name, value in settings.items():
        _check_stored(name, value)
    for name, value in given.items():
        if name not in settings:
            hint = did_you_mean(name, settings)
            raise SettingsError(f"there is no setting {name!r}.{hint} There are: {', '.join(settings) or 'none'}.")
        settings[name] = _convert(name, value, settings[name])
    return settings


def resolve_given(module: ModuleType, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns only the given settings, checked and converted."""
    settings = resolve(module, given)
    return {name: settings[name] for name in given}


def build(module: ModuleType, settings: Mapping[str, Any]) -> Experiment:
    """Calls make_experiment and checks what it returns.

    Raises:
        ExperimentError: it raised, or returned something else or an experiment with invalid numbers.
    """
    from tinyverse.experiment.experiment import Experiment  # imports torch, which `info` and `plot` do not need

    name = module.__name__.removeprefix(_PREFIX).split(".")[-1]
    experiment = _guarded(lambda: module.make_experiment(**settings), f"make_experiment of {name}")
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"make_experiment returned {type(experiment).__name__}, wanted a tinyverse.Experiment.")
    experiment.check()
    return experiment


def rebuild(name: str, settings: Mapping[str, Any]) -> Experiment:
    """Loads and builds an experiment; another process can, for its name and settings travel and no code does."""
    return build(load_module(name), settings)


def is_ours(error: BaseException) -> bool:
    """Tells whether no frame of the user's code is in the traceback: tinyverse raised the error itself."""
    return _first_of_theirs(traceback.extract_tb(error.__traceback__)) is None


def user_traceback(error: BaseException) -> str:
    """Returns the traceback from the user's first frame on; where there is none, the last frame."""
    frames = traceback.extract_tb(error.__traceback__)
    first = _first_of_theirs(frames)
    shown = frames[-1:] if first is None else frames[first:]
    return "".join(traceback.format_list(shown) + traceback.format_exception_only(error)).rstrip()


def _first_of_theirs(frames: traceback.StackSummary) -> int | None:
    """Returns the index of the first frame outside this package, Python and folders of installed packages."""
    places = [Path(__file__).parents[1], *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    places += [place for place in map(Path, filter(None, sys.path)) if any(place.glob("*.dist-info"))]
    for index, frame in enumerate(frames):
        if not frame.filename.startswith("<") and not any(map(Path(frame.filename).is_relative_to, places)):
            return index
    return None


def _convert(name: str, value: Any, default: Any) -> Any:
    """Converts `value`, a string of the command line or a value of a file, to the type of `default`."""
    kind = type(default)
    if type(value) is kind and not isinstance(value, (tuple, list)):
        return value
    try:
        if default is None:
            return _literal(value) if isinstance(value, str) else value
        if kind is bool:
            return _WORDS[str(value).lower()]
        if kind in (tuple, list):
            if isinstance(value, str):
                value = [part for part in value.strip("()[] ").split(",") if part.strip()]
            return kind(_convert(name, part, default[0] if default else None) for part in value)
        if kind in (int, float, str) and isinstance(value, (str, int)):
            return kind(value)
    except (ValueError, KeyError, TypeError):
        pass
    raise SettingsError(f"{name}={value} cannot be read as {kind.__name__}; its default is {default!r}.") from None


def _check_stored(name: str, default: Any) -> None:
    """Raises SettingsError for a default that does not come back from JSON, as a run keeps it for all who join."""
    try:
        back = _convert(name, json.loads(json.dumps(default)), default)
        comes_back = isinstance(default, type(back)) and bool(back == default or back != back)  # NaN is not itself
    except (TypeError, ValueError, OverflowError, RecursionError, SettingsError):
        comes_back = False
    if not comes_back:
        raise SettingsError(
            f"the setting {name}={default!r} cannot be kept for those who join the run. Settings are numbers, texts, booleans, "
            "None, and lists or tuples of one of these: give such a value, and make the rest of it in make_experiment."
        )


def _literal(text: str) -> Any:
    """Returns the number, None, True or False that `text` spells, else `text` itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if value is None or isinstance(value, (bool, int, float)) else text


def _guarded(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except TinyverseError:
        raise
    except Exception as error:
        raise ExperimentError(f"{name} raised {type(error).__name__}:\n{user_traceback(error)}") from error


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{_PREFIX}{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look up their module by name
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that its imports work as with `python file.py`
    spec.loader.exec_module(module)
    return module


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _hint(name: str) -> str:
    here = [file.name for file in Path().glob("*.py")]
    return did_you_mean(name, here + list(examples())) or f" The packaged examples are {', '.join(examples())}."
