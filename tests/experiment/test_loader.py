"""Loader: which module a name stands for, and how words become settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tinyverse.core.errors import ExperimentError, SettingsError
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a file into the working directory, which is an empty folder and on sys.path as with `python -m`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield make
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def module_of(**defaults: Any) -> ModuleType:
    """A module whose make_experiment has these arguments."""
    names = ", ".join(f"{name}={value!r}" for name, value in defaults.items())
    space: dict[str, Any] = {}
    exec(f"def make_experiment({names}): pass", space)
    return SimpleNamespace(__name__="mine", make_experiment=space["make_experiment"])  # type: ignore[return-value]


# -- which module ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.py", "./mine.py", "deep/mine.py", "deep.mine", "mine"])
def test_a_file_or_a_dotted_module(write: Write, name: str) -> None:
    write("mine.py", "where = 'here'\ndef make_experiment(): pass")
    write("deep/mine.py", "where = 'deep'\ndef make_experiment(): pass")
    assert loader.load_module(name).where == ("deep" if "deep" in name else "here")


def test_a_file_imports_its_neighbours_and_may_hold_dataclasses(write: Write) -> None:
    write("deep/helper_of_mine.py", "number = 7")
    write("deep/mine.py", (
        "from __future__ import annotations\nimport dataclasses\nfrom helper_of_mine import number\n"
        "@dataclasses.dataclass\nclass Size:\n    n: int = number\n"
        "def make_experiment(): pass"
    ))  # fmt: skip
    assert loader.load_module("deep/mine.py").Size().n == 7


def test_a_packaged_example_by_its_name(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert Path(str(loader.load_module("catch").__file__)) == loader.examples()["catch"]
    assert capsys.readouterr().err == ""
    assert {"atari", "cartpole", "catch", "tabular"} <= set(loader.examples())


def test_the_file_of_an_example_that_is_not_here_is_the_example_and_says_so(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Path(str(loader.load_module("catch.py").__file__)) == loader.examples()["catch"]
    assert "there is no catch.py here" in capsys.readouterr().err
    write("catch.py", "mine = True\ndef make_experiment(): pass")
    assert loader.load_module("catch.py").mine
    assert capsys.readouterr().err == ""
    with pytest.raises(ExperimentError, match=r"no file elsewhere/catch\.py"):
        loader.load_module("elsewhere/catch.py")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cach.py", "there is no file cach.py. Did you mean catch"),
        ("mime.py", "there is no file mime.py. Did you mean mine.py"),
        ("cartpol", "cartpol is no file, no module and no packaged example. Did you mean cartpole"),
        ("zzzzzz", "The packaged examples are acrobot, atari, "),
        ("no.such.module", "no.such.module is no file, no module"),
        ("mine.py", "mine.py has no function make_experiment"),
    ],
)
def test_what_cannot_be_loaded(write: Write, name: str, sentence: str) -> None:
    write("mine.py", "make_experiment = 3")
    with pytest.raises(ExperimentError) as caught:
        loader.load_module(name)
    assert sentence in str(caught.value)


def test_the_traceback_of_a_module_begins_at_the_users_frame(write: Write) -> None:
    write("mine.py", "def f():\n    import json\n    json.loads('{')\nf()")
    with pytest.raises(ExperimentError) as caught:
        loader.load_module("mine.py")
    lines = str(caught.value).splitlines()
    assert lines[0] == "mine.py raised JSONDecodeError:"
    assert 'mine.py", line 4, in <module>' in lines[1]
    assert lines[-1].startswith("json.decoder.JSONDecodeError: ")
    assert "loader.py" not in str(caught.value) and "importlib" not in str(caught.value)


def test_a_syntax_error_is_theirs_too(write: Write) -> None:
    write("mine.py", "def make_experiment(:\n    pass")
    with pytest.raises(ExperimentError, match=r"mine\.py raised SyntaxError") as caught:
        loader.load_module("mine.py")
    assert "def make_experiment(:" in str(caught.value) and "loader.py" not in str(caught.value)


def test_whose_error_it_is(write: Write) -> None:
    write("mine.py", "def f(): raise ValueError('theirs')\ndef make_experiment(): pass")
    module = loader.load_module("mine.py")
    with pytest.raises(ValueError, match="theirs") as caught:
        module.f()
    caught.value.__traceback__ = caught.value.__traceback__ and caught.value.__traceback__.tb_next
    assert not loader.is_ours(caught.value)
    with pytest.raises(AttributeError) as ours:
        loader.defaults(3)  # type: ignore[arg-type]
    ours.value.__traceback__ = ours.value.__traceback__ and ours.value.__traceback__.tb_next
    assert loader.is_ours(ours.value)


def test_a_library_is_not_theirs_wherever_it_is_installed(write: Write, tmp_path: Path) -> None:
    write("libraries/helpful.py", "def call(function): function()")
    write("libraries/helpful-1.0.dist-info/METADATA", "Name: helpful")
    write("mine.py", "import helpful\ndef f(): raise ValueError('theirs')\ndef make_experiment(): pass")
    sys.path.insert(0, str(tmp_path / "libraries"))
    module = loader.load_module("mine.py")
    with pytest.raises(ValueError, match="theirs") as caught:
        module.helpful.call(module.f)
    caught.value.__traceback__ = caught.value.__traceback__ and caught.value.__traceback__.tb_next
    assert not loader.is_ours(caught.value)
    assert 'mine.py", line 2, in f' in loader.user_traceback(caught.value).splitlines()[0]


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        (False, "true", True), (True, "no", False), (True, "0", False), (False, "YES", True),
        (3, "12", 12), (3, "-1", -1),
        (0.5, "3e-4", 3e-4), (0.5, "2", 2.0), (0.5, 2, 2.0),
        ("a", "b c", "b c"), ("a", "7", "7"), ("a", "", ""),
        ((1, 2), "3,4,5", (3, 4, 5)), ((1, 2), "(3, 4)", (3, 4)), ((1.5,), "2", (2.0,)), (("a",), "x,y", ("x", "y")),
        ((1,), [2, 3], (2, 3)), ((True,), "false,true", (False, True)), ((), "1,x", (1, "x")), ([1], "2,3", [2, 3]),
        (None, "4", 4), (None, "2.5", 2.5), (None, "word", "word"), (None, "None", None), (None, "true", "true"),
        (None, 4, 4), (None, "__import__('os')", "__import__('os')"),
    ],
)  # fmt: skip
def test_values_take_the_type_of_their_default(default: Any, text: Any, value: Any) -> None:
    found = loader.resolve(module_of(a=default, b=1), {"a": text})
    assert found == {"a": value, "b": 1}
    assert type(found["a"]) is type(value)
    if isinstance(value, (tuple, list)):
        assert list(map(type, found["a"])) == list(map(type, value))


@pytest.mark.parametrize(
    ("default", "text", "kind"),
    [(3, "1.5", "int"), (3, "abc", "int"), (3, 1.5, "int"), (0.5, "fast", "float"), (True, "maybe", "bool"),
     ((1, 2), "a,b", "int"), ((1, 2), 5, "tuple"), (0.5, [1], "float"), ("a", [1], "str")],
)  # fmt: skip
def test_values_that_are_not_of_the_type(default: Any, text: Any, kind: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loader.resolve(module_of(alpha=default), {"alpha": text})
    message = str(caught.value)
    assert message.startswith("alpha=") and f"cannot be read as {kind}" in message and "its default is" in message


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError) as caught:
        loader.resolve(module_of(learning_rate=1.0, num_envs=2), {"learning_rat": "1"})
    assert str(caught.value) == (
        "there is no setting 'learning_rat'. Did you mean learning_rate? There are: learning_rate, num_envs."
    )
    with pytest.raises(SettingsError, match="There are: none"):
        loader.resolve(module_of(), {"x": "1"})


def test_only_what_was_given() -> None:
    assert loader.resolve_given(module_of(a=1, b=2), {"b": "5"}) == {"b": 5}


def test_every_argument_needs_a_default() -> None:
    module = SimpleNamespace(make_experiment=lambda num_envs: None)
    with pytest.raises(ExperimentError, match=r"make_experiment\(num_envs\) has no default"):
        loader.defaults(module)  # type: ignore[arg-type]


# -- building -------------------------------------------------------------------------------------------------------


def test_make_experiment_is_called_with_the_settings() -> None:
    made = loader.build(SimpleNamespace(__name__="mine", make_experiment=lambda n: Experiment(num_envs=n)), {"n": 3})  # type: ignore[arg-type]
    assert made.num_envs == 3


def test_what_make_experiment_may_not_do(write: Write) -> None:
    write("mine.py", "def make_experiment(what=0):\n    return [None, {}, 1 / what][what]")
    module = loader.load_module("mine.py")
    with pytest.raises(ExperimentError) as caught:
        loader.build(module, {"what": 0})
    lines = str(caught.value).splitlines()
    assert lines[0] == "make_experiment of mine raised ZeroDivisionError:"
    assert 'mine.py", line 2, in make_experiment' in lines[1]
    with pytest.raises(ExperimentError, match="make_experiment returned dict, wanted"):
        loader.build(module, {"what": 1})


@pytest.mark.parametrize(
    ("name", "count"), [("unroll_length", 0), ("batch_size", -1), ("num_envs", 0), ("publish_every", 1.5)]
)
def test_counts_that_count_nothing(name: str, count: Any) -> None:
    module = SimpleNamespace(__name__="mine", make_experiment=lambda: Experiment(**{name: count}))
    with pytest.raises(ExperimentError, match=f"{name} is {count}, wanted a whole number of at least 1"):
        loader.build(module, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        "numpy.int64(16)",
        "numpy.float32(1e-3)",
        "pathlib.Path('maps')",
        "{1, 2}",
        "b'x'",
        "1j",
        "(1, 0.5)",
        "{'a': (1, 2)}",
        "len",
        "int",
        "numpy.ones(2)",
    ],
)
def test_a_default_that_a_run_cannot_keep_is_refused_at_once(tmp_path, value):
    (tmp_path / "odd.py").write_text(
        f"import numpy, pathlib\ndef make_experiment(thing={value}): raise AssertionError\n"
    )
    with pytest.raises(SettingsError, match=r"the setting thing=.* cannot be kept for those who join the run"):
        loader.resolve(loader.load_module(str(tmp_path / "odd.py")), {})


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "1.5",
        "'text'",
        "True",
        "None",
        "(1, 2)",
        "[0.5]",
        "((1, 2), (3, 4))",
        "()",
        "float('inf')",
        "float('nan')",
        "2**70",
        "(None, 3)",
    ],
)
def test_a_default_that_json_holds_comes_back(tmp_path, value):
    (tmp_path / "even.py").write_text(f"def make_experiment(thing={value}): raise AssertionError\n")
    module = loader.load_module(str(tmp_path / "even.py"))
    settings = loader.resolve(module, {})
    assert repr(loader.resolve(module, json.loads(json.dumps(settings)))) == repr(settings)
