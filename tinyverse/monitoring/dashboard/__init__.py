"""Dashboard: one page that shows a run while it trains. It reads the database, runs/NAME and ./records, and changes nothing.

    /                 the page: static/index.html, its style and script, and uPlot 1.6.32 (MIT) to draw curves with
    /history          the trainer's log so far, thinned, as columns
    /events           what `info --json` says, as server-sent events, once a second
    /frames           the newest steps of an environment (player=ID&env=N), with what its agent computes (see `frames`)
    /video/NAME       a video of an evaluation

It asks nothing of a player: all of this is in the database already. Needs the extra `page`.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import math
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from tinyverse.core.errors import ServerError, SettingsError, TinyverseError
from tinyverse.database.base import BEGINNING, LOG_KEPT, Database, is_session_id
from tinyverse.monitoring import metrics, status
from tinyverse.monitoring.dashboard.frames import Frames
from tinyverse.monitoring.report import is_video, newest_video
from tinyverse.trainer.run_folder import RunFolder

STATIC = Path(__file__).with_name("static")
POINTS = 1000  # of a curve; more are not seen
DRAWN = re.compile(
    r"seconds|step|play/return(_low|_high)?|play/steps_per_second|train/updates_per_second|replay/lag|loss/.+"
)
SECONDS = 1.0  # between two reads of the database, however many people see the page
VIEWERS = 64  # connections at once that have been let in
SILENT = 64  # that have asked nothing yet; another one takes the place of the oldest
HEAD_SECONDS = 5.0  # for the head of a request
SHORTEST_TOKEN = 8  # characters
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # an address may hold the token
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def history(database: Database, folder: RunFolder) -> dict[str, Any]:
    """{"columns": a list per name that is drawn, None where a row has no number; "evaluations": rows}, oldest first.

    Where the server came back empty, older rows come from the run's folder, if it is on this machine. Steps only grow.
    """
    rows, kept = (metrics.numbers(rows) for rows in (database.metrics(LOG_KEPT), folder.rows()))
    begins = min((row["step"] for row in rows if row.get("step") is not None), default=math.inf)
    rows = [row for row in kept if (begins if row.get("step") is None else row["step"]) < begins] + rows
    log, evaluations = metrics.split(rows)
    log = metrics.growing([row for row in log if row.get("step") is not None])
    log = log[(len(log) - 1) % -(-len(log) // POINTS) :: -(-len(log) // POINTS)] if log else []  # ends with the newest
    names = sorted({name for row in log for name in row if DRAWN.fullmatch(name)})
    columns = {name: [row.get(name) for row in log] for name in names}
    return {"columns": columns, "evaluations": evaluations[-POINTS:]}


def application(
    database: Database, folder: RunFolder, frames: Frames, videos: Path, *, token: str = "",
    hosts: tuple[str, ...] = LOOPBACK, closing: threading.Event | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """The page as an ASGI application.

    Args:
        token: requests without it are refused; "": none is needed, but the request must be meant for `hosts`.
        hosts: names of this machine. Another name in the Host header means a web page elsewhere whose own name was made
            to point here (DNS rebinding).
        closing: once it is set, streams of events end.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import FileResponse, Response, StreamingResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    run = folder.path.name

    @_Once
    def newest() -> dict[str, Any]:
        facts = status.gather(database, run)
        del facts["curve"]  # which /history has
        facts["errors"] = [{**row, "traceback": ""} for row in facts["errors"]]  # which `info --errors` shows
        return facts | {"video": newest_video(run, videos)}

    def answer(ask: Callable[[], Any]) -> Response:
        return Response(_json(ask), media_type="application/json")

    def get_history(request: Request) -> Response:  # starlette calls what is not async in a thread
        return answer(lambda: history(database, folder))

    def get_frames(request: Request) -> Response:
        player, env, after = (request.query_params.get(name, "") for name in ("player", "env", "after"))
        if not re.fullmatch(r"\d{0,9}", env) or not is_session_id(after or BEGINNING):
            raise HTTPException(400, "env is a number from 0 on, after is the id of a session.")
        return answer(lambda: frames.newest(player, int(env or 0), after))

    def get_video(request: Request) -> Response:
        name = request.path_params["name"]
        if not re.fullmatch(rf"{re.escape(run)}-v\d+\.webm", name) or not is_video(videos / name):
            raise HTTPException(404, f"there is no video {name}.")
        return FileResponse(videos / name, media_type="video/webm")

    async def get_events(request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            while closing is None or not closing.is_set():
                yield f"data: {await run_in_threadpool(_json, newest)}\n\n"
                await asyncio.sleep(SECONDS)

        return StreamingResponse(events(), media_type="text/event-stream")

    routes = [
        Route("/history", get_history),
        Route("/events", get_events),
        Route("/frames", get_frames),
        Route("/video/{name}", get_video),
        Mount("/", StaticFiles(directory=STATIC, html=True)),
    ]
    return _guarded(Starlette(routes=routes), token, hosts)


@contextlib.contextmanager
def served(make: Callable[..., Any], listen: str) -> Iterator[str]:
    """Serves what `make(hosts=…, closing=…)` returns on `listen` ("host:port") in a thread; yields its URL.

    Raises:
        SettingsError: `listen` is no host and port. ServerError: nobody can listen there.
    """
    import uvicorn

    host, port = address(listen)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServerError(
            f"nobody can listen on {listen}: {error.strerror or error}. Choose another place: --listen HOST:PORT."
        ) from None
    closing = threading.Event()
    config = uvicorn.Config(
        make(hosts=(*LOOPBACK, host), closing=closing), log_config=None, access_log=False, server_header=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=2, limit_concurrency=VIEWERS + SILENT, http=_impatient(),
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="page", daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
    finally:
        closing.set()
        server.should_exit = True
        thread.join(10)
        listening.close()


def _impatient() -> Any:
    """uvicorn's protocol, but nobody is kept out by connections that never finish the head of their first request."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    silent: list[Any] = []  # oldest first

    class Impatient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            silent.append(self)
            self.deadline = self.loop.call_later(HEAD_SECONDS, self.give_up)
            if len(silent) > SILENT:
                silent[0].give_up()

        def give_up(self) -> None:
            self.heard()
            self.transport.abort()

        def heard(self) -> None:
            if self in silent:
                silent.remove(self)
                self.deadline.cancel()

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None:
                self.heard()

        def connection_lost(self, exc: Exception | None) -> None:
            self.heard()
            super().connection_lost(exc)

    return Impatient


def address(listen: str) -> tuple[str, int]:
    """(host, port) of "host:port"; an IPv6 host stands in brackets."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/\s]+):(\d{1,5})", listen)
    if not found or int(found[2]) > 65535:
        raise SettingsError(f"--listen {listen}: write it as HOST:PORT, for example 127.0.0.1:7080.")
    return found[1].strip("[]"), int(found[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class _Once:
    """One answer for all who ask within SECONDS."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask, self._lock = ask, threading.Lock()
        self._answer: Any = None
        self._asked = -math.inf

    def __call__(self) -> Any:
        with self._lock:
            if time.monotonic() - self._asked > SECONDS / 2:
                self._answer, self._asked = self._ask(), time.monotonic()
            return self._answer


def _json(ask: Callable[[], Any]) -> str:
    """The answer as JSON, or {"problem": a sentence} where a person can mend it. NaN and infinity become null."""
    try:
        return json.dumps(json.loads(json.dumps(ask()), parse_constant=lambda name: None))
    except TinyverseError as error:
        return json.dumps({"problem": str(error)})


def _guarded(app: Callable[..., Any], token: str, hosts: tuple[str, ...]) -> Callable[..., Any]:
    """The application, but only for GET and HEAD, and only for known hosts or with the token; HEADERS on every answer."""
    from starlette.datastructures import MutableHeaders
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, RedirectResponse, Response

    def refused(request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("this page only shows.", 405, {"allow": "GET, HEAD"})
        if not token:
            host = request.headers.get("host", "")
            if re.sub(r":\d*$", "", host.lower()).strip("[]") not in hosts:
                return PlainTextResponse(f"this page is not called {host[:100]!r}; open it as localhost.", 421)
            return None
        name = f"tinyverse-{(request.scope.get('server') or ('', 0))[1]}"  # a browser's cookies do not know ports
        if _same(request.query_params.get("token", ""), token):
            answer = RedirectResponse("/", 303)  # so that the token stays in no history
            answer.set_cookie(name, token, httponly=True, samesite="strict")
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if _same(request.cookies.get(name, ""), token) or _same(bearer, token):
            return None
        return PlainTextResponse("open this page by the address with ?token=… that `watch` printed.", 401)

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = refused(Request(scope))
        if refusal is not None and refusal.status_code >= 400:
            refusal.headers["connection"] = "close"  # who is not let in takes nobody's place
        await (refusal or app)(scope, receive, send_with_headers)

    return guard


def _same(shown: str, token: str) -> bool:
    """Compared in a time that does not tell how much of it was right."""
    return hmac.compare_digest(shown.encode(), token.encode())
