"""Diagnosis: what a run's numbers mean, in sentences: how long a wait will last, how learning goes, who is the bottleneck."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tinyverse.core.errors import TinyverseError
from tinyverse.core.session import SessionSpec
from tinyverse.database.base import State
from tinyverse.monitoring.metrics import Row, sparkline

PLAYS = ("play", "human")
ROLES = {"train": "trainer", "play": "player", "human": "person", "eval": "evaluator"}
IDLE = 0.2  # share of its time from which on a side counts as waiting
ADVICE = {
    "environment": "the environment takes {share:.0%} of a step; add players",
    "act": "acting takes {share:.0%} of a step; add players, or play --cores 2",
}


def more(facts: Mapping[str, Any], state: State, meta: Mapping[str, str], rows: Sequence[Row]) -> dict[str, Any]:
    """What `status.gather` adds to its plain facts."""
    workers = facts["workers"]
    players = [worker for worker in workers if worker["role"] in PLAYS]
    steps = sum(worker["steps_per_second"] for worker in players)
    try:
        spec = SessionSpec.from_json(meta["spec"])
    except (KeyError, TinyverseError):
        spec = None
    per_second = steps / spec.length if spec else None
    return {
        "reuse_wanted": None if state.allowance is None else state.reuse,
        "compression": spec.nbytes * facts["sessions"] / facts["bytes"] if spec and facts["bytes"] else None,
        "steps_per_second": steps,
        "frames_per_second": sum(worker["steps_per_second"] * worker["frame_skip"] for worker in players),
        "sessions_per_second": per_second,
        "curve": [
            [row["step"], row["play/return"]] for row in rows if None not in map(row.get, ("step", "play/return"))
        ],
        "waits": {worker["id"]: sentence for worker in workers if (sentence := wait(worker, per_second))},
        "bottleneck": bottleneck(facts),
    }


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The same as sentences; none of a run that does not exist."""
    if not facts["run_id"]:
        return []
    messages = [f"{facts['steps_per_second']:,.0f} steps/s, {facts['frames_per_second']:,.0f} frames/s"]
    if len(facts["curve"]) > 1:
        returns = [value for _, value in facts["curve"]]
        messages[0] += f"; return {sparkline(returns)} {returns[-1]:.4g}"
    return [*messages, *sorted(set(facts["waits"].values())), facts["bottleneck"]]


def wait(worker: Mapping[str, Any], sessions_per_second: float | None) -> str:
    """What a worker waits for and how long that will take, as a sentence; "" when it does not wait.

    >>> wait({"role": "train", "waits_for": "312 of 500 sessions", "waits_seconds": 60}, 4.7)
    'trainer waits: 312 of 500 sessions, since 60 s; about 40 s more at this rate'
    """
    if not worker["waits_for"]:
        return ""
    who = ROLES.get(worker["role"], worker["role"])
    message = f"{who} waits: {worker['waits_for']}, since {worker['waits_seconds']:.0f} s"
    found = re.match(r"(?:(\d+) of )?([\d,]+) (?:more )?(?:new )?session", worker["waits_for"])
    if found is None or not sessions_per_second:
        return message
    missing = int(found[2].replace(",", "")) - int(found[1] or 0)
    return f"{message}; about {missing / sessions_per_second:.0f} s more at this rate"


def bottleneck(facts: Mapping[str, Any]) -> str:
    """One sentence on who holds the others up, and what would help."""
    if not facts["run_id"]:
        return "no trainer has created the run; start one"
    trainers = [worker for worker in facts["workers"] if worker["role"] == "train"]
    players = [worker for worker in facts["workers"] if worker["role"] in PLAYS]
    if not trainers:
        return "no trainer is at work; start one"
    if not players:
        waits = "no player is at work yet; start one, or wait for one that is starting"
        return waits if trainers[0]["waits_for"] else "the trainer learns alone; nobody plays"
    lost = [worker for worker in trainers + players if worker["waits_for"] == "the database"]
    if lost:
        return f"database: {lost[0]['role']} on {lost[0]['host']} waits for it; is the network or the server slow?"
    shares = {name[5:]: share for name, share in facts["metrics"].items() if name.startswith("time/")}
    trainer_idle = max(0.0, 1 - sum(shares.values())) if shares else float(bool(trainers[0]["waits_for"]))
    player_idle = sum(map(_idle, players)) / len(players)
    if max(trainer_idle, player_idle) < IDLE:
        return "nobody waits long; more of everything would be faster"
    if player_idle > trainer_idle:
        update = f"an update takes {shares['update']:.0%} of its time; " if "update" in shares else ""
        return f"trainer: {update}give it more threads, a GPU or bf16, or a smaller reuse"
    stages = sum((Counter(worker["stages"]) for worker in players), Counter[str]())
    if not stages:
        return "players: the trainer waits for them; add players"
    name, share = stages.most_common(1)[0]
    advice = ADVICE.get(name, name + " takes {share:.0%} of a step; add players")
    return "players: " + advice.format(share=share / stages.total())


def _idle(worker: Mapping[str, Any]) -> float:
    """The share of its time in which a player does nothing."""
    if worker["waits_for"] and not worker["stages"]:
        return 1.0
    return max(0.0, 1 - sum(worker["stages"].values())) if worker["stages"] else 0.0
