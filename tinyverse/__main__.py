"""`python -m tinyverse`, and `python tinyverse` from a checkout, are the same as the `tinyverse` command."""

import sys
from pathlib import Path

if not __package__:  # run as a folder: its parent is where the package lies
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tinyverse.cli.main import main

main()
