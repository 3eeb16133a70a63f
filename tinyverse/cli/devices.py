"""Where an agent acts or learns: devices and precisions that can be used here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyverse.core import system
from tinyverse.core.errors import SettingsError

if TYPE_CHECKING:
    from tinyverse.agents.agent import Agent


def acting(agent: Agent, device: str, precision: str) -> Agent:
    """An agent for playing: on its device, in bfloat16 where that is wanted and fast."""
    to = getattr(agent, "to", None)
    if to is None:
        return agent
    import torch

    return to(device=device, dtype=torch.bfloat16 if precision_of(precision, device) == "bf16" else None)


def precision_of(wanted: str, device: str) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device multiplies it itself."""
    if wanted not in ("auto", "fp32", "bf16"):
        raise SettingsError(f"precision is {wanted!r}; there are auto, fp32 and bf16.")
    if wanted != "auto":
        return wanted
    return "bf16" if device.startswith("cuda") or system.has_bfloat16() else "fp32"


def check_device(device: str) -> None:
    """Raises SettingsError unless torch can use the device here."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}. Try cpu.") from None
