"""Serving of read-only pages: on the loopback interface without a password, elsewhere with a token alone."""

from __future__ import annotations

import hashlib
import hmac
import html
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zo_common.address import host_and_port, is_loopback, listening_sockets
from zo_common.errors import ConfigError

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer: nothing is loaded from elsewhere, and no inline script or style is obeyed."""

_COOKIE = "zo-asr-token"
_MOST_FORM_BYTES = 4096
_SIGN_IN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"></head><body><main><h1>Sign in</h1>
<form method="post" action="/sign-in"><p><label>Token <input type="password" name="token" required
autocomplete="current-password"></label> <button>Sign in</button></p></form><p role="status">{message}</p></main></body>
</html>"""
_LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class Listening:
    """Address to serve on, and what opens it.

    Attributes:
        token: that callers must send; empty on the loopback interface.
        certificate, key: files for TLS; None without.
    """

    host: str
    port: int
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def of(
        cls, address: str, token_file: Path | None = None, certificate: Path | None = None, key: Path | None = None
    ) -> Listening:
        """Read the options of a command.

        Raises:
            ConfigError: an address that others reach without a token, a token that is short or no text, or half of a
                key pair.
        """
        host, port = host_and_port(address)
        token = _token_of(token_file) if token_file else ""
        if token_file and len(token) < _LEAST_TOKEN:
            raise ConfigError(
                f"{token_file} has {len(token)} characters, expected {_LEAST_TOKEN}: openssl rand -hex 16"
            )
        if not token and not is_loopback(host):
            raise ConfigError(
                f"{address} can be reached by others: give --token-file, or listen on 127.0.0.1 and use an SSH tunnel"
            )
        if (certificate is None) != (key is None):
            raise ConfigError("one of --certificate and --key is given, expected both or none")
        return cls(host, port, token, certificate, key)

    @property
    def url(self) -> str:
        """The address for a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{self.port}/"


def _token_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text: openssl rand -hex 16 makes a token") from None


def guarded(app: Starlette, listening: Listening) -> ASGIApp:
    """Return the application behind its checks: methods, token or host name, and `HEADERS` on every answer.

    Without a token the `Host` header must name the loopback interface: a page elsewhere whose name was made to lead
    here (DNS rebinding) reads nothing.
    """
    inner: ASGIApp = TokenGate(app, listening.token) if listening.token else ReadOnly(app)
    if not listening.token:
        inner = LoopbackName(inner)
    return _WithHeaders(inner)


class _Server(uvicorn.Server):
    """A server that ends endless answers before it waits for them."""

    end: Callable[[], Awaitable[None]] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.end is not None:
            await self.end()
        await super().shutdown(sockets)


def server_of(app: Starlette, listening: Listening, end: Callable[[], Awaitable[None]] | None = None) -> uvicorn.Server:
    """Return a server that is not running yet.

    Args:
        end: ends answers without end, such as streams of events, when the server is asked to stop.
    """
    server = _Server(
        uvicorn.Config(
            guarded(app, listening),
            host=listening.host,
            port=listening.port,
            ssl_certfile=listening.certificate,
            ssl_keyfile=str(listening.key) if listening.key else None,
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=2,
        )
    )
    server.end = end
    return server


def sockets_of(config: uvicorn.Config) -> list[socket.socket]:
    """Load all that a server needs, its TLS files among it, and return its sockets: from then on it can be announced.

    Raises:
        ConfigError: the address cannot be listened on, a TLS file cannot be read, or the key is not the certificate's.
    """
    if config.ssl_certfile and config.ssl_keyfile:
        _expect_pem(Path(config.ssl_certfile))
        _expect_pem(Path(config.ssl_keyfile))
    try:
        config.load()
    except ssl.SSLError as error:
        raise ConfigError(
            f"{config.ssl_certfile} and {config.ssl_keyfile} cannot be used for TLS ({error.reason or error}): name a "
            "certificate and its private key"
        ) from None
    return listening_sockets(config.host, config.port)


def _expect_pem(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a PEM file that TLS can use") from None
    if b"-----BEGIN " not in content:
        raise ConfigError(f"{path} is no PEM file, expected a certificate or a private key: name one, or convert it")


class LoopbackName:
    """ASGI application that answers only requests whose `Host` names the loopback interface."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_ours(Request(scope).headers.get("host", "")):
            await PlainTextResponse("this page is for this machine alone\n", 400)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        try:
            return is_loopback(urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return False


class ReadOnly:
    """ASGI application that lets GET and HEAD through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            answer = PlainTextResponse("only GET\n", 405, headers={"allow": "GET, HEAD"})
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


class TokenGate:
    """ASGI application that asks for the token: `Authorization: Bearer`, or the cookie that its form sets."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = ReadOnly(app)
        self._token = token
        self._cookie = hmac.new(token.encode(), b"zo-asr dashboard", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        if request.url.path == "/sign-in" and request.method == "POST":
            answer: Callable[[Scope, Receive, Send], Awaitable[None]] = await self._sign_in(request)
        elif self._known(request):
            answer = self._app
        elif "text/html" in request.headers.get("accept", ""):
            answer = _form("", 401)
        else:
            answer = PlainTextResponse("the token is missing or wrong\n", 401, headers={"www-authenticate": "Bearer"})
        await answer(scope, receive, send)

    def _known(self, request: Request) -> bool:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        cookie = request.cookies.get(_COOKIE, "")
        return _same(bearer, self._token) or _same(cookie, self._cookie)

    async def _sign_in(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_FORM_BYTES:
                return _form("That is no token.", 413)
        given = parse_qs(body.decode(errors="replace")).get("token", [""])[0]
        if not _same(given, self._token):
            return _form("The token is wrong.", 401)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(_COOKIE, self._cookie, httponly=True, samesite="strict", secure=secure)
        return answer


def _form(message: str, status: int) -> HTMLResponse:
    return HTMLResponse(_SIGN_IN.format(message=html.escape(message)), status)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


class _WithHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers)
