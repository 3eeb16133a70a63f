"""The command `new`: writes an experiment around a small environment of one's own, and a test for it."""

from pathlib import Path

import click

from tinyverse.core.errors import SettingsError

TEMPLATES = Path(__file__).parent / "templates"  # NAME in them stands for the module's name


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Writes an experiment around a small environment of your own into FILE, with comments, and a test beside it."""
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise SettingsError(f"{file}: give a name that Python can import, such as my_game.py.")
    test = file.with_name(f"test_{file.name}")
    for each in (file, test):
        if each.exists():
            raise SettingsError(f"{each} is there already. Choose another name, or move it away.")
    file.parent.mkdir(parents=True, exist_ok=True)
    for each, template in ((file, "experiment.py.txt"), (test, "test_experiment.py.txt")):
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        each.write_text(text.replace("NAME", file.stem), encoding="utf-8")
    print(f"wrote {file} and {test}. Next: tinyverse {file} check, then tinyverse {file} local -n 300")
