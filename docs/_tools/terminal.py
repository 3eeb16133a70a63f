"""Terminal: what a terminal shows, as a PNG for docs/images. The terminal is tmux's, the picture Chromium's.

tmux capture-pane -e -p | python docs/_tools/terminal.py docs/images/info.png
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PAGE = (
    "<body style='margin:12px;color:{foreground};background:{background}'>"
    "<pre style='font:15px/1.35 DejaVu Sans Mono,monospace'>{code}</pre></body>"
)
WIDTH, HEIGHT = 9.03, 20.25  # pixels of a character of that font

shown = Text.from_ansi(sys.stdin.read().rstrip())
lines = shown.plain.splitlines()
columns = max(map(len, lines))
console = Console(record=True, width=columns, file=io.StringIO())
console.print(shown)
with tempfile.TemporaryDirectory() as folder:
    page = Path(folder) / "page.html"
    page.write_text(console.export_html(theme=MONOKAI, inline_styles=True, code_format=PAGE), encoding="utf-8")
    size = f"{int(columns * WIDTH) + 40},{int(len(lines) * HEIGHT) + 56}"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}",
         f"--user-data-dir={folder}", f"--screenshot={Path(sys.argv[1]).resolve()}", page.as_uri()],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
