"""Floors: a module imports only what stands above it in this table, wherever in the file the import stands."""

import ast
from pathlib import Path

import pytest

import tinyverse

PACKAGE = Path(tinyverse.__file__).parent

FLOORS = {
    "words": "errors nest codec timing machine",
    "things": "agent session returns towers losses networks.norms networks.trunks networks.convs networks.resnets "
    "networks.bodies networks.recurrent networks.attention networks.heads networks.modular networks.squashed "
    "networks normalizers",
    "meeting": "position database redis_places redis_setup redis_server redis_keys rows seal redis_database sharded_database access",
    "memory": "sum_tree samplers shares batch ring stored_sessions replay weights weights_file rng",
    "learning": "torch_agent q_agent learner algorithms.* algorithms",
    "people": "envs.arrays envs.dialects envs.mending envs.pool envs.parallel envs.rebuilt envs.accept envs.workers envs.* envs experiment loader archive run_folder player human guard intake trainer loop evaluator explain writers prometheus monitor progress published plot",
    "door": "__init__ asked playing training together judging exporting tidying looking page.games page watching plotting reporting beginning scripting configuring options cli_sessions cli_server cli_words completing doctor demo cli __main__",
}
ROOMS = [room for floor in FLOORS.values() for room in floor.split()]
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def place(module):
    """The place of a module in the table; in a room like `envs.*` nobody may import a neighbour."""
    if module in ROOMS:
        return ROOMS.index(module)
    parent = module.rpartition(".")[0] + ".*"
    return ROOMS.index(parent) if parent in ROOMS else None


def imported(source, module):
    """The modules of the package that a source imports anywhere but under TYPE_CHECKING."""
    found, is_package = set(), module in ("networks", "algorithms", "envs", "page")

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["tinyverse", *module.split(".")]
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            if base.split(".")[0] == "tinyverse":
                found.update(
                    f"{base}.{alias.name}" if f"{base}.{alias.name}"[10:] in MODULES else base for alias in node.names
                )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return {name[10:] or "__init__" for name in found if name.split(".")[0] == "tinyverse"}


def violations(source, module):
    return sorted(name for name in imported(source, module) if place(name) is None or place(name) >= place(module))


def test_every_module_has_its_place_in_the_table():
    assert [name for name in MODULES if place(name) is None] == []


def test_the_table_has_no_empty_rooms():
    missing = [room for room in ROOMS if not room.endswith("*") and room not in MODULES]
    assert missing == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_above(module):
    assert violations(MODULES[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("codec", "from tinyverse.errors import CodecError", []),
        ("codec", "from tinyverse.session import Session", ["session"]),
        ("codec", "from tinyverse import session", ["session"]),
        ("codec", "import tinyverse.replay", ["replay"]),
        ("codec", "import tinyverse", ["__init__"]),
        ("codec", "from tinyverse import Session", ["__init__"]),
        ("codec", "from tinyverse.nowhere import x", ["nowhere"]),
        ("codec", "def f():\n    from tinyverse.trainer import Trainer", ["trainer"]),
        ("codec", "from .session import Session", ["session"]),
        ("codec", "from . import session", ["session"]),
        ("codec", "if TYPE_CHECKING:\n    from tinyverse.session import Session", []),
        ("codec", "if TYPE_CHECKING:\n    pass\nelse:\n    from tinyverse.session import Session", ["session"]),
        ("nest", "from tinyverse.codec import encode", ["codec"]),
        ("networks.heads", "from tinyverse.networks.modular import x", ["networks.modular"]),
        ("networks.heads", "from .modular import x", ["networks.modular"]),
        ("networks.heads", "from ..replay import x", ["replay"]),
        ("networks", "from .modular import x", []),
        ("envs.atari", "from tinyverse.envs.video import x", ["envs.video"]),
        ("envs.atari", "from tinyverse.envs.pool import x", []),
    ],
)
def test_the_check_sees_every_way_to_import(module, source, wrong):
    assert violations(source, module) == wrong
