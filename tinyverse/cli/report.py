"""The command `report`: a run as one page to pass on."""

import click

from tinyverse.cli.context import RECORDS, RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.cli.plot import folder_of
from tinyverse.core.run_config import check_can_join
from tinyverse.trainer.run_folder import RunFolder


@click.command(cls=RunCommand)
@click.argument("others", nargs=-1, metavar="[RUN]...")
def report(context: RunContext, others: tuple[str, ...] = ()) -> None:
    """One page about a run to pass on, with its curve, a video if `eval` has made one, settings, machine, versions and the
    commands that made it: report.html and report.md in runs/NAME. Further RUNs are other seeds of the same settings.

    Example: tinyverse atari.py report --name pong-s1 pong-s2 pong-s3
    """
    from tinyverse.monitoring.report import write_report

    folders = [RunFolder(folder_of(name)) for name in dict.fromkeys([context.run, *others])]
    settings = {**folders[0].settings().get("settings", {}), **context.settings}
    for folder in folders:
        check_can_join(folder.path.name, folder.settings(), context.title, settings)
    with context.bar("drawing the report"):
        page, text = write_report(folders, title=context.title, command=context.command("eval"), videos=RECORDS)
    print(f"report: {page} and {text.name}")
