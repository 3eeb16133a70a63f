"""What the package promises to whoever imports it: names, docstrings, exceptions, examples in docstrings, a light door."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import tinyverse
from tinyverse.core import errors

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(tinyverse.__path__, "tinyverse.")
    if not module.name.endswith("__main__")
)


def test_all_is_what_can_be_imported():
    namespace = {}
    exec("from tinyverse import *", namespace)
    assert set(tinyverse.__all__) == set(namespace) - {"__builtins__"}
    assert len(set(tinyverse.__all__)) == len(tinyverse.__all__)


@pytest.mark.parametrize("name", sorted(set(tinyverse.__all__) - {"__version__"}))
def test_public_names_come_from_their_home_and_say_what_they_are(name):
    thing = getattr(tinyverse, name)
    assert thing.__name__ == name and vars(sys.modules[thing.__module__])[name] is thing
    own = thing.__doc__ if inspect.isfunction(thing) else vars(thing)["__doc__"]
    assert own and not own.startswith(f"{name}("), "a docstring of its own, not the one dataclasses make"


def test_names_that_do_not_exist_are_attribute_errors():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tinyverse.nonsense


@pytest.mark.parametrize("module", ["tinyverse", "tinyverse.cli.main"])
def test_the_door_costs_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'gymnasium', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_all_exceptions_of_the_package_are_in_the_tree():
    strays = []
    for name in MODULES:
        for thing in vars(importlib.import_module(name)).values():
            ours = (
                inspect.isclass(thing) and issubclass(thing, BaseException) and thing.__module__.startswith("tinyverse")
            )
            if ours and (thing.__module__ != "tinyverse.core.errors" or not issubclass(thing, errors.TinyverseError)):
                strays.append(thing)
    assert strays == []


def test_the_tree_is_drawn_as_it_is():
    drawn, parents = {}, {}
    for line in errors.__doc__.splitlines():
        if found := re.fullmatch(r" {4}([ │├└─]*)((?:[A-Z]\w+(?:, )?)+)", line):
            depth, names = len(found[1]), found[2].split(", ")
            parents[depth] = names[0]
            drawn |= dict.fromkeys(names, parents.get(depth - 4, "Exception"))
    there = {name: thing for name, thing in vars(errors).items() if inspect.isclass(thing)}
    assert drawn == {name: thing.__base__.__name__ for name, thing in there.items()}
    assert all(vars(thing)["__doc__"] for thing in there.values())


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    module = importlib.import_module(name)
    assert module.__doc__, "a module says what it is, then why it exists"
    assert doctest.testmod(module).failed == 0


def test_some_docstring_has_an_example():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name))) > 0
