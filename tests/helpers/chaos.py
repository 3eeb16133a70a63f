"""What breaks on purpose: a server that is killed, frozen and brought back, and a network between it and its clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from tinyverse.database import server, server_config
from tinyverse.database.connection import connect

AT_ONCE = 1 << 16  # bytes that the proxy takes from a socket at a time


class Breakable:
    """A server that can be killed and started again under the same URL: empty, or with what it had saved.

    Args:
        max_memory: bytes, above which it refuses to write.
    """

    def __init__(self, max_memory: int = 64 << 20) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tvf", dir="/tmp"))
        self.server, self._binary = server_config.prepare(self.folder, None, max_memory)
        self.url, self.admin_url = self.server.url, self.server.admin_url
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Breakable:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Starts it; it takes up what `save` has written last."""
        quiet = subprocess.DEVNULL
        with (self.folder / "server.conf").open() as config:
            self._process = subprocess.Popen(
                [self._binary, "-"], cwd=self.folder, stdin=config, stdout=quiet, stderr=quiet
            )
        server._ready(self.server)

    def save(self) -> None:
        """Writes a copy of all it holds; the next `start` begins with that."""
        with connect(self.admin_url) as admin:
            admin.save()

    def forget(self) -> None:
        """Removes the copy; the next `start` begins empty."""
        (self.folder / "dump.rdb").unlink(missing_ok=True)

    @contextlib.contextmanager
    def unsaved(self) -> Iterator[None]:
        """Meanwhile it cannot save, as on a full disk, and refuses every write for it (MISCONF)."""
        self.forget()
        (self.folder / "dump.rdb").mkdir()  # no file can be renamed to this
        with connect(self.admin_url) as admin:
            admin.config_set("stop-writes-on-bgsave-error", "yes")
            admin.config_set("save", "3600 1")  # the rule holds only for servers that save by themselves
            admin.bgsave()
            while admin.info("persistence")["rdb_last_bgsave_status"] == "ok":
                time.sleep(0.01)
            try:
                yield
            finally:
                (self.folder / "dump.rdb").rmdir()
                admin.config_set("save", "")

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


class Proxy:
    """A bad network on a TCP port in front of a server on a unix socket. What is bad may be changed at any time.

    Attributes:
        latency: seconds that each piece is late.
        rate: bytes a second in each direction of a connection; None: as many as come.
        pieces: bytes that are passed on at a time.
        silent: whether nothing is passed on, while all connections stay open.
        fuse: bytes to the server after which every connection is reset, in the middle of a request; None: never.
        rubbish: bytes that are put once before the next answer; b"": none.
        resets: how often connections were reset.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._socket = urllib.parse.unquote(parts.path)
        self._account = parts.netloc.rpartition("@")[0]
        self.heal()
        self.resets = 0
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def heal(self) -> None:
        """Nothing is bad."""
        self.latency, self.pieces, self.silent = 0.0, AT_ONCE, False
        self.rate: int | None = None
        self.fuse: int | None = None
        self.rubbish = b""

    def reset(self) -> None:
        """Resets every connection now."""
        self._do(self._reset())

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"redis://{self._account}@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        await self._reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reset(self) -> None:
        self.resets += 1
        for writer in list(self._connections):
            _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._socket)
        except OSError:
            _abort(writer)
            return
        self._connections |= {writer, to_server}
        for work in (self._pass(reader, to_server, up=True), self._pass(from_server, writer, up=False)):
            task = asyncio.ensure_future(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self.pieces):
                await asyncio.sleep(self.latency + (len(data) / self.rate if self.rate else 0.0))
                while self.silent:
                    await asyncio.sleep(0.01)
                if up and self.fuse is not None:
                    data, self.fuse = data[: self.fuse], self.fuse - len(data)
                if not up and self.rubbish:
                    data, self.rubbish = self.rubbish + data, b""
                writer.write(data)
                await writer.drain()
                if up and self.fuse is not None and self.fuse <= 0:
                    self.fuse = None
                    await self._reset()
        self._connections.discard(writer)
        writer.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with a reset, not a farewell."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_INET:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
