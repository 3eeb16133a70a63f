"""Writes README's table of files: lines and first words of each. `python docs/listing.py` after a change of the house."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- listing -->\n", "<!-- end of listing -->\n"
FLOORS = {
    "words": "errors nest codec timing machine",
    "things": "session agent returns towers losses networks normalizers",
    "meeting place": "position database redis_places redis_setup redis_server redis_keys rows seal redis_database sharded_database access",
    "memory": "sum_tree samplers shares batch ring stored_sessions replay weights weights_file rng",
    "learning": "torch_agent q_agent learner algorithms",
    "people": "envs experiment loader archive run_folder player human guard intake trainer loop evaluator explain writers prometheus monitor progress published plot",
    "door": "asked playing training together judging exporting tidying looking page watching plotting reporting beginning scripting configuring options cli_sessions cli_server cli_words completing doctor cli demo",
}


def listing() -> str:
    """The table, floor by floor."""
    rows = ["| floor | file | lines | what |", "|---|---|---:|---|"]
    for floor, names in FLOORS.items():
        for name in names.split():
            path = ROOT / "tinyverse" / name
            files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            lines = sum(len(file.read_text().splitlines()) for file in files)
            what = _first_words(path / "__init__.py" if path.is_dir() else files[0])
            link = f"tinyverse/{name}" + ("/" if path.is_dir() else ".py")
            rows.append(f"| {floor} | [`{name}`]({link}) | {lines} | {what} |")
            floor = ""
    return "\n".join(rows) + "\n"


def updated(readme: str) -> str:
    """The README's text with a new table."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + listing() + END + rest.partition(END)[2]


def _first_words(file: Path) -> str:
    text = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    return text.split(": ", 1)[-1].split(". ")[0].rstrip(".:")


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))
