"""Terminal: what is known of a run (see `status`) for people: `info`, `info --watch`, `info --errors`, `run`."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from tinyverse.core.text import counted
from tinyverse.monitoring import diagnosis
from tinyverse.monitoring.metrics import duration, size

MOST_ROWS = 100  # of the table of workers
LOST = {"dropped": "sessions dropped", "faults": "environments rebuilt"}


def headline(facts: Mapping[str, Any]) -> str:
    """The run in one line."""
    if not facts["run_id"]:
        return f"run {facts['run']}: no trainer has created it yet"
    mean = "–" if facts["mean_return"] is None else f"{facts['mean_return']:.2f}"
    found = facts["evaluation"]
    best = "" if found.get("eval/best") is None else f" (best {found['eval/best']:.2f})"
    evaluated = f", evaluated {found['eval/return']:.2f}{best}" if found else ""
    return (
        f"{facts['run']} ({facts['experiment']}): return {mean} over the last {counted(facts['episodes'], 'episode')}, "
        f"{counted(facts['step'], 'step')}, update {facts['update']:,}, version {facts['version']}{evaluated}"
    )


def panel(facts: Mapping[str, Any]) -> RenderableType:
    """The run: its headline, its buffer, a table of its workers, and what the numbers mean."""
    table = Table(
        "role", "host", *(Column(name, justify="right") for name in ("pid", "steps/s", "version", "lag", "up")),
        "waits for", "last error", box=None, pad_edge=False,
    )  # fmt: skip
    for worker in facts["workers"][:MOST_ROWS]:
        table.add_row(*_cells(worker))
    nobody = [] if facts["workers"] else [Text("nobody is at work", style="yellow")]
    more = len(facts["workers"]) - MOST_ROWS
    messages = [f"and {counted(more, 'worker')} more"] if more > 0 else []
    messages += diagnosis.lines(facts)
    if failed := facts["errors"]:
        messages.append(f"{counted(len(failed), 'error')}; the last: {failed[-1]['error'][:200]} (info --errors)")
    return Group(Text(headline(facts), style="bold"), Text(_buffer(facts)), table, *nobody, *map(Text, messages))


def errors(facts: Mapping[str, Any]) -> RenderableType:
    """The last errors with their tracebacks."""
    rows = [
        Text(f"{row['when']} {row['role']} on {row['host']} (pid {row.get('pid')})\n{row['traceback']}")
        for row in facts["errors"]
    ]
    return Group(*rows) if rows else Text("no worker has ended with an error")


def _buffer(facts: Mapping[str, Any]) -> str:
    """What the buffer holds, and what became of its sessions."""
    fill = 100 * facts["sessions"] / max(facts["capacity"], 1)
    text = f"buffer {facts['sessions']:,} of {facts['capacity']:,} sessions ({fill:.0f} %), {size(facts['bytes'])}"
    if facts["sessions"]:
        decoded = facts["metrics"].get("replay/bytes_per_session")
        in_memory = f", {size(decoded)} in the trainer's memory" if decoded else ""
        text += f" ({size(facts['bytes'] / facts['sessions'])} a session{in_memory})"
        text += f", compressed {facts['compression']:.1f} times" if (facts["compression"] or 0) > 1 else ""
    text += ", reuse " + ("–" if facts["reuse"] is None else f"{facts['reuse']:.2f}")
    text += "" if facts["reuse_wanted"] is None else f" of {facts['reuse_wanted']:g} wanted"
    if rejected := facts["counters"].get("rejected", 0):
        text += f", {counted(rejected, 'session')} rejected"
    if facts["human_sessions"]:
        mean = "" if facts["human_return"] is None else f", return {facts['human_return']:.2f}"
        text += f", {counted(facts['human_sessions'], 'session')} played by people{mean}"
    return text


def _cells(worker: Mapping[str, Any]) -> list[str]:
    """A worker's row of the table."""
    waits = f"{worker['waits_for']} ({worker['waits_seconds']:.0f} s)" if worker["waits_for"] else ""
    waits += f" [silent for {worker['seen']:.0f} s]" if worker["seen"] > 5 else ""
    lost = [f"{worker[name]:,} {what}" for name, what in LOST.items() if worker[name]]
    numbers = [f"{worker['steps_per_second']:,.0f}", str(worker["version"]), f"{worker['lag']:.1f}"]
    return [
        escape(worker["role"]), escape(worker["host"]), str(worker["pid"]), *numbers, duration(worker["uptime"]),
        escape("; ".join(filter(None, [waits, *lost]))), escape(worker["error"].split("\n")[-1][:80]),
    ]  # fmt: skip
