"""The addresses: /, /api/chat, /v1/realtime or those of `speech`, /health, /metrics. Thin: the house does the rest."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web

from ..errors import InputError
from ..models.roles import BOTH_SIDES, KINDS
from .chat import Chat
from .guard import Refused
from .house import House
from .protocols import kyutai
from .realtime_talk import RealtimeTalk
from .speech import ADDRESSES, messages
from .speech.visit import Hearing, Speaking
from .talk import CLOSE_SECONDS

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss: blob:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self)",
    "Cache-Control": "no-cache",
}
FIRST_REQUEST_SECONDS = 10.0
HOUSE = web.AppKey("house", House)
ASKED: web.AppKey[Callable[[Any], None]] = web.AppKey("asked")
"""Called with a connection's protocol when it has asked for something."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(house: House, asked: Callable[[Any], None] = lambda protocol: None) -> web.Application:
    """The addresses of a house."""
    app = web.Application(middlewares=[_guarded], client_max_size=64 * 1024)
    app[HOUSE], app[ASKED] = house, asked
    sockets = {"/api/chat": _chat, "/v1/realtime": _realtime}
    sockets |= {ADDRESSES["transcriber"]: _asr, ADDRESSES["speaker"]: _tts}
    others = {"/health": _health, "/metrics": _metrics, "/api/build_info": _build_info}
    for path, handler in {**sockets, **others}.items():
        app.router.add_get(path, handler)
    if house.role in ADDRESSES:  # the page is for conversations
        app.router.add_get("/", _what_is_here)
        return app
    # The files are read once and listed: there is no path to walk out of.
    for file in sorted(PAGE.iterdir()):
        if file.suffix in TYPES:
            app.router.add_get("/" if file.name == "index.html" else f"/{file.name}", _static(file))
    return app


def _static(file: Path) -> Handler:
    body = file.read_bytes()

    async def serve(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=TYPES[file.suffix], charset="utf-8", headers=HEADERS)

    return serve


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Host is checked for everything; what is refused gets a line that says why."""
    request.app[ASKED](request.protocol)
    house = request.app[HOUSE]
    try:
        house.guard.check_host(request.headers)
        return await handler(request)
    except Refused as error:
        house.figures.refused.labels(str(error.status)).inc()
        house.log.info("refused", extra={"path": request.path, "reason": str(error)})
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return web.json_response({"error": str(error)}, status=error.status, headers=headers)
    except InputError as error:
        house.figures.refused.labels("400").inc()
        return web.json_response({"error": str(error)}, status=400)


def _entered(request: web.Request, *roles: str) -> House:
    """The house that a websocket was asked of. Raises Refused, also where its model has none of these roles."""
    house = request.app[HOUSE]
    house.guard.check(request.headers, request.query)
    if house.role not in roles:
        here = ADDRESSES.get(house.role, "/api/chat or /v1/realtime")
        raise Refused(404, f"this server has a {KINDS[house.role][0]}, which talks at {here}")
    _check_upgrade(request)
    return house


async def _chat(request: web.Request) -> web.StreamResponse:
    house = _entered(request, *BOTH_SIDES)
    ask = kyutai.ask(request.query)
    return await house.talk(request, lambda house: Chat(house, ask))


async def _realtime(request: web.Request) -> web.StreamResponse:
    return await _entered(request, *BOTH_SIDES).talk(request, RealtimeTalk)


async def _asr(request: web.Request) -> web.StreamResponse:
    house = _entered(request, "transcriber")
    return await house.talk(request, lambda house: Hearing(house, request.query), _turned_away)


async def _tts(request: web.Request) -> web.StreamResponse:
    house = _entered(request, "speaker")
    return await house.talk(request, lambda house: Speaking(house, request.query), _turned_away)


async def _turned_away(request: web.Request, reason: str) -> web.StreamResponse:
    """Kyutai's clients look for the next server when the first message is an error; an HTTP status they do not read."""
    ws = web.WebSocketResponse(timeout=CLOSE_SECONDS)
    await ws.prepare(request)
    await ws.send_bytes(messages.pack(messages.error(reason)))
    await ws.close(code=WSCloseCode.TRY_AGAIN_LATER, message=reason.encode()[:120])
    return ws


async def _what_is_here(request: web.Request) -> web.StreamResponse:
    house = request.app[HOUSE]
    what = f"{house.model_name}, a {KINDS[house.role][0]}"
    words = f"moshi_mlx serves {what}, at {ADDRESSES[house.role]}; see docs/unmute.md\n"
    return web.Response(text=words, headers=HEADERS)


async def _build_info(request: web.Request) -> web.StreamResponse:
    """What Unmute asks a server for to see whether it is up."""
    house = request.app[HOUSE]
    return web.json_response({"build": "moshi_mlx", "version": house.version, "model": house.model_name})


def _check_upgrade(request: web.Request) -> None:
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Refused(426, "this is a websocket; GET / is the page")


async def _health(request: web.Request) -> web.StreamResponse:
    health = request.app[HOUSE].health()
    return web.json_response(health, status=200 if health["status"] == "ok" else 503)


async def _metrics(request: web.Request) -> web.StreamResponse:
    return web.Response(
        body=request.app[HOUSE].metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )


def tls(folder: Path) -> ssl.SSLContext:
    """From cert.pem and key.pem in a folder, Kyutai's convention. Raises InputError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    for file in (certificate, key):
        if not file.is_file():
            raise InputError(f"--ssl: got a folder without {file.name} ({folder}), expected cert.pem and key.pem")
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"--ssl: got files in {folder} that are no certificate and its key ({error})") from None
    return context


class Listener:
    """A house's addresses on a port. Connections that never ask for anything are dropped after a while."""

    def __init__(self, house: House) -> None:
        app = make_app(house, self._asked)
        self.runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        self._server: asyncio.AbstractServer | None = None
        self._silent: dict[Any, asyncio.TimerHandle] = {}  # connections that have asked for nothing yet

    async def open(self, host: str, port: int, context: ssl.SSLContext | None = None) -> int:
        """-> the port, which the system chooses where it is 0. Raises InputError where it cannot be had."""
        await self.runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._protocol, host, port, ssl=context, backlog=128)
        except OSError as error:
            raise InputError(f"--host, --port: cannot listen on {host}:{port} ({error.strerror or error})") from None
        return int(self._server.sockets[0].getsockname()[1])

    def _protocol(self) -> Any:
        assert self.runner.server is not None
        protocol = self.runner.server()
        loop = asyncio.get_running_loop()
        self._silent[protocol] = loop.call_later(FIRST_REQUEST_SECONDS, self._drop, protocol)
        return protocol

    def _asked(self, protocol: Any) -> None:
        timer = self._silent.pop(protocol, None)
        if timer is not None:
            timer.cancel()

    def _drop(self, protocol: Any) -> None:
        self._silent.pop(protocol, None)
        if protocol.transport is not None:
            protocol.transport.abort()

    async def close(self) -> None:
        """Lets nobody in, ends those who are there, and cuts off who does not take what is still to be sent."""
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()
        if self._server is not None:
            self._server.close()
        server = self.runner.server
        transports = [each.transport for each in server.connections if each.transport] if server else []
        await self.runner.cleanup()
        for transport in transports:
            transport.abort()
        if self._server is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 2.0)
