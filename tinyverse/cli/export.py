"""The command `export`: weights with their settings as plain safetensors, or a network that acts as ONNX."""

from pathlib import Path

import click

from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand, weights_option
from tinyverse.cli.weights import WeightsTracker, weights_for
from tinyverse.core.errors import SettingsError
from tinyverse.core.files import atomic_write


@click.command(cls=RunCommand)
@click.argument("file", type=click.Path(path_type=Path))
@weights_option
def export(context: RunContext, file: Path, weights: str | None) -> None:
    """Writes the weights with their settings to FILE.safetensors, or a network that acts to FILE.onnx.

    Example: tinyverse atari.py export pong.safetensors --weights best
    """
    if file.suffix not in (".safetensors", ".onnx"):
        raise SettingsError(f"export {file}: give the file the suffix .safetensors or .onnx.")
    if not file.parent.is_dir():
        raise SettingsError(f"export {file}: there is no folder {file.parent}/.")
    found = weights_for(context, weights, WeightsTracker())
    assert found is not None  # nothing was found before
    if file.suffix == ".safetensors":
        found.write(file)
    else:
        from tinyverse.cli.onnx_export import to_onnx

        with context.bar("writing the network as ONNX"):
            atomic_write(file, to_onnx(context.experiment, found))
    numbers = f"update {found.update:,}, step {found.step:,}"
    print(f"wrote version {found.version} of run {context.run} ({numbers}) to {file}")
