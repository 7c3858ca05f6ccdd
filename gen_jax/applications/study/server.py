"""The web page of a study: a Starlette application over a `Store`, which alone knows order, sides and truth."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cached_property
from importlib import resources
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gen_jax.applications.study.protocol import Stimulus, digest
from gen_jax.applications.study.store import Conflict, Full, Refused, Store, Trial, Unsaved
from gen_jax.errors import UserError

__all__ = ["StudyServer", "is_loopback", "web_server"]

T = TypeVar("T")
BODY = 4096  # bytes of a request at most
HEAD = 16384  # of its headers
SLOWEST = 10  # seconds until the first request of a connection is there
ADMISSIONS = 60  # in a minute at most
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
PAGE = {
    "/": ("index.html", "text/html"),
    "/study.js": ("study.js", "text/javascript"),
    "/study.css": ("study.css", "text/css"),
}


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Guard:
    """Refuses requests of other hosts, origins, types and sizes before any of their body is read."""

    def __init__(self, app: ASGIApp, allowed: Callable[[str], bool]):
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if refusal is None:
            await self.app(scope, receive, secured)
        else:
            status, said = refusal
            await Response(said, status, {"connection": "close"}, "text/plain")(scope, receive, secured)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"]) > HEAD:
            return 431, "the headers are too long"
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        [host, *more] = headers.get(b"host", [b""])
        name = _host_name(host.decode("latin-1"))
        if more or not name or not self.allowed(name):
            return 421, "this server does not answer for that host"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return 405, "this method is not allowed"
        schemes = [b"http"] if is_loopback(name) else [b"http", b"https"]  # a proxy may encrypt what comes from outside
        if headers.get(b"origin", []) not in [[scheme + b"://" + host] for scheme in schemes]:
            return 403, "the request does not come from this page"
        if headers.get(b"content-type", [b""])[0].split(b";")[0].strip() != b"application/json":
            return 415, "the content must be JSON"
        if b"transfer-encoding" in headers or len(headers.get(b"content-length", [])) != 1:
            return 411, "the length of the content is needed"
        length = headers[b"content-length"][0]
        return None if length.isdigit() and int(length) <= BODY else (413, "the content is too long")


def _host_name(host: str) -> str:
    """The name in a Host header, without the port; "" if it is malformed."""
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name, port = host, "0"
    if not port.isdigit():
        return ""
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


class StudyServer:
    """Serves a study.

    hosts: names that requests may be addressed to, besides addresses; those of loopback only if `loopback`. The cookie
    has the name of the study, since browsers send it to all ports.
    open: whether raters may begin without an invitation.
    """

    def __init__(self, store: Store, loopback: bool = True, open: bool = True, hosts: tuple[str, ...] = ()):
        self.store, self.open, self.cookie = store, open, f"study-{store.protocol.stimuli[:8]}"
        self._hosts, self._loopback = {host.lower() for host in hosts}, loopback
        self._thread = ThreadPoolExecutor(1)  # the one that uses the store
        self._admitted: list[float] = []
        self._pictures = {name: content for name, content in self._verified()}
        folder = resources.files("gen_jax.applications.study") / "page"
        self._page = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}

    def _verified(self):
        """Names and contents of the pictures. Raises UserError if one is missing or another one."""
        for one in self.store.stimuli.values():
            if one.file:
                path = self.store.folder / "stimuli" / one.file
                content = path.read_bytes() if path.is_file() else b""
                if digest(content) != one.sha256:
                    raise UserError(f"{path} is missing or not the one that this study was created with: put it back")
                yield one.file, content
            if one.given_file:
                yield one.given_file, (self.store.folder / "stimuli" / one.given_file).read_bytes()

    @cached_property
    def app(self) -> ASGIApp:
        routes = [
            *(Route(path, self._static, methods=["GET"]) for path in PAGE),
            Route("/api/state", self._state, methods=["GET"]),
            Route("/api/join", self._join, methods=["POST"]),
            Route("/api/shown", self._view, methods=["POST"]),
            Route("/api/answer", self._answer, methods=["POST"]),
            Route("/api/leave", self._leave, methods=["POST"]),
            Route("/picture/{token}", self._picture, methods=["GET"]),
            Route("/favicon.ico", lambda request: Response(status_code=204), methods=["GET"]),
        ]
        return _Guard(Starlette(routes=routes, exception_handlers=_HANDLERS, lifespan=self._lifespan), self._allowed)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Backs up the store, and closes it at the end, after what is being stored."""
        await self._stored(self.store.back_up)
        yield
        await self._stored(self.store.back_up)
        await self._stored(self.store.close)
        self._thread.shutdown()

    def _allowed(self, host: str) -> bool:
        if is_loopback(host) or host.lower() in self._hosts:
            return True
        if self._loopback:
            return False
        try:
            ipaddress.ip_address(host)  # a name could be another site's that points here, an address cannot
        except ValueError:
            return False
        return True

    async def _stored(self, f: Callable[..., T], *args: Any) -> T:
        """f(*args) in the thread of the store."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, f, *args)

    async def _static(self, request: Request) -> Response:
        content, kind = self._page[request.url.path]
        return Response(content, media_type=f"{kind}; charset=utf-8")

    async def _rater(self, request: Request) -> str:
        return await self._stored(self.store.rater, request.cookies.get(self.cookie, ""))

    async def _state(self, request: Request) -> Response:
        """What the page shows now."""
        said = {"wording": self._wording(), "open": self.open}
        try:
            rater = await self._rater(request)
        except Refused:
            return JSONResponse({**said, "page": "consent"})
        return JSONResponse({**said, **await self._stored(self._now, rater)})

    def _wording(self) -> Mapping[str, Any]:
        return self.store.protocol.wording

    def _now(self, rater: str) -> dict[str, Any]:
        trial = self.store.current(rater)
        if trial is None:
            return {"page": "done", "code": self.store.code(rater), "open": self.open}
        return {"page": "trial", "trial": self._shown(trial)}

    def _shown(self, trial: Trial) -> dict[str, Any]:
        """A trial without anything that says which answer is right."""
        height, width = self.store.protocol.size
        said = {
            "id": trial.id,
            "practice": trial.role == "practice",
            "practiced": self.store.protocol.practice > 0,
            "seen": trial.views > 0,
            "number": trial.number,
            "total": trial.total,
            "items": [self._item(token, id, False) for token, id in zip(trial.tokens, trial.stimuli)],
            "width": width,
            "height": height,
            "exposure": self.store.protocol.exposure_ms,
        }
        return {**said, "given": self._item(trial.given, trial.given_stimulus, True)} if trial.given else said

    def _item(self, token: str, id: str, given: bool) -> dict[str, str]:
        one = self.store.stimuli[id]
        if given and one.given:
            return {"text": one.given}
        return {"picture": f"/picture/{token}"} if one.file else {"text": one.text}

    async def _join(self, request: Request) -> Response:
        """Admits a rater who agrees, or goes on with the one of an invitation who has agreed before."""
        said = await _json(request)
        token, screen = said.get("invitation", ""), said.get("screen", "")
        if not isinstance(token, str) or not isinstance(screen, str):
            raise Refused("malformed")
        known = await self._stored(self.store.invited, token[:100]) if token else None
        if not known and (token or not self.open):
            raise Refused("an invitation is needed")
        if said.get("agreed") is not True and not (known and await self._stored(self.store.knows, known)):
            raise Refused("a rater must agree")
        if not known:
            self._limit()
        screen = "".join(c for c in screen if c in "0123456789x@.")[:32]
        rater, session = await self._stored(self.store.admit, token[:100], screen)
        response = JSONResponse(await self._stored(self._now, rater))
        encrypted = request.headers["origin"].startswith("https:")
        response.set_cookie(
            self.cookie, session, max_age=90 * 24 * 3600, secure=encrypted, httponly=True, samesite="strict"
        )
        return response

    def _limit(self) -> None:
        """Raises Full if too many raters without an invitation came within a minute."""
        now = asyncio.get_running_loop().time()
        self._admitted = [at for at in self._admitted if at > now - 60]
        if len(self._admitted) >= ADMISSIONS:
            raise Full("too many raters at once")
        self._admitted.append(now)

    async def _leave(self, request: Request) -> Response:
        """Forgets the rater, for another one at the same browser."""
        response = JSONResponse({})
        response.delete_cookie(self.cookie)
        return response

    async def _view(self, request: Request) -> Response:
        """Counts that the current trial is shown: the time of a second look does not count."""
        rater, said = await self._rater(request), await _json(request)
        if not isinstance(said.get("trial"), str):
            return JSONResponse({"error": "malformed"}, 400)
        await self._stored(self.store.view, rater, said["trial"])
        return JSONResponse({})

    async def _answer(self, request: Request) -> Response:
        """Stores an answer; the reply, with the next trial, comes when it is on disk."""
        rater, said = await self._rater(request), await _json(request)
        trial, choice, hidden = said.get("trial"), said.get("choice"), said.get("hidden", False)
        times = [_time(said.get("rt")), _time(said.get("onset"))]
        if not isinstance(trial, str) or type(choice) is not int or not isinstance(hidden, bool):
            return JSONResponse({"error": "malformed"}, 400)
        if not 0 <= choice < self.store.protocol.choices:
            return JSONResponse({"error": "malformed"}, 400)
        answered = await self._stored(self.store.answer, rater, trial, choice, *times, hidden)
        reply = await self._stored(self._now, rater)
        if answered.role == "practice" and answered.expected is not None:
            reply["feedback"] = {"right": choice == answered.expected, "expected": answered.expected}
        return JSONResponse(reply)

    async def _picture(self, request: Request) -> Response:
        rater = await self._rater(request)
        stimulus, given = await self._stored(self.store.stimulus, rater, request.path_params["token"])
        name = _file(stimulus, given)
        if name is None:
            raise Refused("there is no such picture")
        return Response(self._pictures[name], media_type="image/png")


def _file(stimulus: Stimulus, given: bool) -> str | None:
    return (stimulus.given_file if given else stimulus.file) or None


def _time(value: Any) -> float | None:
    """A time in milliseconds, up to a day; None for anything else, as no answer is refused for its time."""
    return float(value) if type(value) in (int, float) and 0 <= value <= 86_400_000 else None


async def _json(request: Request) -> dict[str, Any]:
    """The object in the body of a request. Raises Refused if there is none."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            raise Refused("the content is too long")
    try:
        said = json.loads(body)
        json.dumps(said, ensure_ascii=False).encode()  # no halves of characters
    except (ValueError, RecursionError):
        raise Refused("the content must be JSON") from None
    if not isinstance(said, dict):
        raise Refused("the content must be an object")
    return said


def _replies(status: int) -> Callable[[Request, Exception], Response]:
    return lambda request, error: JSONResponse({"error": str(error)}, status)


_HANDLERS = {
    Refused: _replies(403),
    Conflict: _replies(409),
    Full: _replies(429),
    Unsaved: lambda request, error: JSONResponse({"error": "unsaved"}, 503),
}


class _Hasty(H11Protocol):
    """HTTP/1.1 that closes connections on which no request arrives within some seconds."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(SLOWEST, self._expire)

    def _expire(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)


def web_server(study: StudyServer, host: str, port: int) -> uvicorn.Server:
    """The server, whose `run` serves until it is interrupted and finishes the requests it has begun."""
    config = uvicorn.Config(
        study.app,
        host=host,
        port=port,
        http=_Hasty,
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=500,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=HEAD,
    )
    return uvicorn.Server(config)
