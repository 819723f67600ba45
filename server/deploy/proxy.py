"""A TLS reverse proxy that exposes only `/v1/fleet/` of a SuperLink to devices.

SuperLink serves the operator's API on the same port as the devices', without authentication: it stays on loopback,
and this (or nginx) stands before it. A SuperNode retries after 502, 503 and 504; 404, 413 and the
like end it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.watch.serve import sockets_of

log = logging.getLogger("zo_asr.proxy")

MEBIBYTE = 1 << 20
_MOST_DIGITS = 20
# as sent, before any decoding: no dots, escapes, empty segments, backslashes or absolute targets get through
_ALLOWED = re.compile(rb"/v1/fleet(/[A-Za-z0-9_-]+)+")
_OF_ONE_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade host expect forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip".split()
)


@dataclass(frozen=True)
class Limits:
    """Bounds of the proxy: bytes, connections, seconds."""

    body: int = 64 * MEBIBYTE
    connections: int = 4096
    body_seconds: float = 60.0
    answer_seconds: float = 60.0
    idle_seconds: float = 60.0


class Unfit(Exception):
    """A request that is not passed on; the text says why."""

    def __init__(self, status: int, why: str) -> None:
        self.status = status
        super().__init__(why)


class FleetProxy:
    """The ASGI application. `upstream` is the SuperLink's base address; `verify` trusts its certificate alone."""

    def __init__(self, upstream: str, verify: ssl.SSLContext | bool, limits: Limits | None = None) -> None:
        self.upstream = upstream.rstrip("/")
        self.limits = limits or Limits()
        self._verify = verify
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Keep the connections to the SuperLink open."""
        wait = httpx.Timeout(self.limits.answer_seconds, connect=5.0, pool=5.0)
        # SuperLink closes a connection after 5 s without a request, so older ones are not reused
        pool = httpx.Limits(max_connections=self.limits.connections, max_keepalive_connections=64, keepalive_expiry=3.0)
        # trust_env: a proxy setting of the environment must not carry this traffic elsewhere
        async with httpx.AsyncClient(verify=self._verify, timeout=wait, limits=pool, trust_env=False) as client:
            self._client = client
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self.answer(request)
        await response(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """Return the SuperLink's response, or a refusal."""
        path: bytes = request.scope.get("raw_path") or b""
        if not _ALLOWED.fullmatch(path) or request.scope["query_string"]:
            log.warning("%s asked for %s %r: refused", _caller(request), request.method, _shown(request, path))
            return PlainTextResponse("not found\n", 404)
        if request.method != "POST":
            return PlainTextResponse("only POST\n", 405, headers={"allow": "POST"})
        try:
            self._check_length(request)
            return await self._forward(request, path.decode("ascii"))
        except Unfit as unfit:
            return self._refusal(request, unfit.status, str(unfit))
        except (TimeoutError, httpx.TimeoutException) as error:
            return self._refusal(request, 504, f"not done in time ({type(error).__name__})")
        except (ClientDisconnect, httpx.HTTPError) as error:
            return self._refusal(request, 502, f"cut off ({type(error).__name__})")

    def _check_length(self, request: Request) -> None:
        length = request.headers.get("content-length", "0")
        if "content-length" in request.headers and "transfer-encoding" in request.headers:
            raise Unfit(400, "two lengths (RFC 9112, section 6.1)")  # two readers may see two requests
        if len(length) > _MOST_DIGITS or int(length) > self.limits.body:
            raise self._too_large()

    def _too_large(self) -> Unfit:
        return Unfit(413, f"more than {self.limits.body} bytes")

    def _refusal(self, request: Request, status: int, why: str) -> Response:
        log.warning("%s, %s: %s, answered %d", _caller(request), request.scope["raw_path"].decode(), why, status)
        return PlainTextResponse(f"{why}\n", status, headers={"connection": "close"})

    async def _forward(self, request: Request, path: str) -> Response:
        if self._client is None:
            raise RuntimeError("the proxy's lifespan has not begun")
        forwarded = self._client.build_request(
            "POST", self.upstream + path, headers=_request_headers(request), content=self._body(request)
        )
        answered = await self._client.send(forwarded, stream=True)
        response = StreamingResponse(_content(answered), answered.status_code)
        response.raw_headers = _end_to_end(answered.headers.raw)
        return response

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the request's body as it arrives, up to the limits of size and time."""
        size, end = 0, asyncio.get_running_loop().time() + self.limits.body_seconds
        stream = request.stream()
        while True:
            left = end - asyncio.get_running_loop().time()
            try:
                chunk = await asyncio.wait_for(anext(stream), max(left, 0.001))
            except StopAsyncIteration:
                return
            size += len(chunk)
            if size > self.limits.body:
                raise self._too_large()
            yield chunk


async def _content(answered: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the response's body unchanged; the connection is always released."""
    try:
        async for chunk in answered.aiter_raw():
            yield chunk
    finally:
        await answered.aclose()


def _request_headers(request: Request) -> list[tuple[bytes, bytes]]:
    headers = _end_to_end(request.scope["headers"])
    return [*headers, (b"x-forwarded-for", _caller(request).encode()), (b"x-forwarded-proto", b"https")]


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers without hop-by-hop ones: the standard set and those that `Connection` names."""
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    dropped = _OF_ONE_HOP | named
    return [(name.lower(), value) for name, value in headers if name.lower() not in dropped]


def _caller(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _shown(request: Request, path: bytes) -> bytes:
    """Return the requested path, short enough for a log line."""
    query: bytes = request.scope["query_string"]
    return (path + (b"?" + query if query else b""))[:200]


class BoundedProtocol(H11Protocol):
    """HTTP protocol that ends connections that are held open for nothing.

    It closes one on which no request begins for `idle_seconds` (slow headers), and aborts one whose answer is not read
    for `answer_seconds`: closing would wait for the reader.
    """

    idle_seconds = Limits.idle_seconds
    answer_seconds = Limits.answer_seconds
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._seen: object = None
        self._watch = self.loop.call_later(self.idle_seconds, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the reader `answer_seconds`, since the buffer is full."""
        super().pause_writing()
        self._forget_unread()
        self._unread = self.loop.call_later(self.answer_seconds, self._abandon)

    def resume_writing(self) -> None:
        """Stop counting: the reader has read."""
        self._forget_unread()
        super().resume_writing()

    def _abandon(self) -> None:
        log.warning("%s does not read its answer: cut off", self.client[0] if self.client else "unknown")
        self.transport.abort()

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close_if_idle(self) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(self.idle_seconds, self._close_if_idle)


def make_app(upstream: str, verify: ssl.SSLContext | bool, limits: Limits | None = None) -> Starlette:
    """Return the proxy as a Starlette application."""
    proxy = FleetProxy(upstream, verify, limits)
    app = Starlette(lifespan=proxy.lifespan)
    app.mount("", proxy)
    return app


def server_config(
    app: Starlette, *, bind: str, port: int, certificate: Path, key: Path, limits: Limits | None = None
) -> uvicorn.Config:
    """Return uvicorn's settings: TLS, bounded connections, no trust in forwarded headers."""
    limits = limits or Limits()
    return uvicorn.Config(
        app,
        host=bind,
        port=port,
        http=type(
            "Protocol",
            (BoundedProtocol,),
            {"idle_seconds": limits.idle_seconds, "answer_seconds": limits.answer_seconds},
        ),
        ws="none",
        ssl_certfile=certificate,
        ssl_keyfile=str(key),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        backlog=1024,
    )


def serve(config: uvicorn.Config) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the address cannot be listened on, or the TLS files cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every poll of every device
    sockets = sockets_of(config)
    # uvicorn says so only where it opens the sockets itself
    logging.getLogger(__name__).info(f"running on https://{config.host}:{config.port}")
    uvicorn.Server(config).run(sockets)
