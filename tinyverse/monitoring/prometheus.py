"""Prometheus: the newest row of a trainer as a page that Prometheus reads, `train --metrics-port 9100`.

Format: Prometheus' text exposition format, version 0.0.4. Numbers only; every row replaces the one before.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tinyverse.core.errors import SettingsError


def page(row: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The page of a row.

    >>> print(page({"play/return": 1.5, "loss": None}, {"run": "pong"}), end="")
    # TYPE tinyverse_play_return gauge
    tinyverse_play_return{run="pong"} 1.5
    """
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    inside = ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels.items())
    lines = []
    for name, value in row.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            metric = "tinyverse_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
            lines += [f"# TYPE {metric} gauge", f"{metric}{{{inside}}} {value!r}"]
    return "".join(f"{line}\n" for line in lines)


class Prometheus:
    """A writer (see `writers`) that serves `/metrics` until it is closed.

    Args:
        place: "9100", which only this machine reaches, or "HOST:PORT".
    Raises:
        SettingsError: that is no port, or it cannot be listened on.
    """

    def __init__(self, place: str, labels: Mapping[str, str]) -> None:
        host, _, port = place.rpartition(":")
        self._labels, self._page = dict(labels), ""
        if not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"--metrics-port {place}: give a port, or HOST:PORT for other machines to reach it.")
        writer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path.split("?")[0] == "/metrics"
                body = writer._page.encode() if known else b"/metrics\n"
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((host.strip("[]") or "127.0.0.1", int(port)), Handler)
        except OSError as error:
            raise SettingsError(f"--metrics-port {place} cannot be listened on: {error.strerror}.") from None
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def write(self, row: Mapping[str, Any]) -> None:
        self._page = page(row, self._labels)

    def film(self, name: str, path: Any, step: int) -> None:
        """Prometheus shows no films."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
