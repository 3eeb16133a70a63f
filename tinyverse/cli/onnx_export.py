"""An agent that takes the likeliest action, as an ONNX model."""

import importlib.util
import io
import json
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tinyverse.agents.q_agent import QAgent
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SettingsError
from tinyverse.core.weights import WeightsFile
from tinyverse.experiment import loader

EXAMPLE = 2  # environments that the network is traced with; one could be taken for a constant


class Acting(nn.Module):
    """One step of an agent that takes the likeliest action, without the axis of time.

        (first [B] bool, observations…, memory…) -> (actions…, memory…)

    Leaves come in the order of `nest.leaves`, [B, …] each. `first` says whose episode begins: their memory is
    forgotten, so that any may be given, such as zeros.
    """

    def __init__(self, agent: TorchAgent, observations: nest.Tree) -> None:
        super().__init__()
        self.agent, self.network = agent, agent.network
        self.observations = nest.flatten(observations, "observations")
        self.memory = nest.flatten(self.network.initial_state(EXAMPLE), "memory")
        self.examples = {"first": torch.ones(EXAMPLE, dtype=torch.bool), **self.observations, **self.memory}

    def results(self) -> list[str]:
        """The names of what comes out."""
        actions, memory = self._step(*self.examples.values())
        return [*nest.flatten(actions, "actions"), *(f"next_{name}" for name in nest.flatten(memory, "memory"))]

    def forward(self, first: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        actions, memory = self._step(first, *leaves)
        return (*nest.leaves(actions), *nest.leaves(memory))

    def _step(self, first: Tensor, *leaves: Tensor) -> tuple[nest.Tree, nest.Tree]:
        named = dict(zip([*self.observations, *self.memory], leaves, strict=True))
        rows = nest.map(lambda leaf: leaf[None], nest.unflatten(named, "observations"))
        outputs, memory = self.network(rows, nest.unflatten(named, "memory"), first[None])
        if isinstance(self.agent, QAgent):
            return self.agent.q_values(outputs)[0].argmax(-1) + self.agent.start, memory
        return self.network.distribution(nest.map(lambda leaf: leaf[0], outputs.policy)).mode(), memory


def to_onnx(experiment: str, found: WeightsFile) -> bytes:
    """The agent of an experiment with these weights as an ONNX model; its metadata say what it is of.

    Raises SettingsError where onnx is not installed, ExperimentError where the agent cannot be expressed so.
    """
    if not importlib.util.find_spec("onnx"):
        raise SettingsError("export to ONNX wants onnx: pip install 'tinyverse[onnx]', or write a .safetensors file.")
    import onnx

    made = loader.rebuild(experiment, found.run_config["settings"])
    agent = made.agent()
    if not isinstance(agent, TorchAgent):
        kind = type(agent).__name__
        raise ExperimentError(f"{kind} is no TorchAgent: there is no network to export; write a .safetensors file.")
    agent.set_weights(found.weights)
    pool = made.pool(EXAMPLE)
    acting = Acting(agent, nest.map(lambda leaf: torch.from_numpy(leaf.copy()), pool.reset(0))).eval()
    pool.close()
    names, results = list(acting.examples), acting.results()
    buffer: Any = io.BytesIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the exporter has remarks on itself
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            torch.onnx.export(
                acting, tuple(acting.examples.values()), buffer, dynamo=False, opset_version=17,
                input_names=names, output_names=results, dynamic_axes={name: {0: "environments"} for name in (*names, *results)},
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"this network cannot be expressed in ONNX ({reason}); write a .safetensors file."
        raise ExperimentError(message) from error
    finally:
        logger.setLevel(level)
    model: Any = onnx.load_from_string(buffer.getvalue())
    numbers = {name: str(getattr(found, name)) for name in ("version", "update", "step")}
    onnx.helper.set_model_props(model, {"agreed": json.dumps(found.run_config, default=str), **numbers})
    return model.SerializeToString()
