"""A SuperLink's stand-in behind a proxy, requests as raw bytes, and ways around a proxy's rules."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from server.deploy.certificates import client_context

TRICKS = [
    b"/", b"/v1/fleet", b"/v1/fleet/", b"/v1/control/list-nodes", b"/v1/runtime/x", b"/docs", b"/openapi.json",
    b"/v1/fleet/../control/list-nodes", b"/v1/fleet/%2e%2e/control/list-nodes", b"/v1/fleet/..%2fcontrol/list-nodes",
    b"/v1/fleet/%2E%2E%2Fcontrol", b"//v1/fleet/x", b"/v1//fleet/x", b"/v1/fleet//x", b"/v1/fleet/x/",
    b"/v1/fleet/./x", b"/x/../v1/fleet/x", b"/V1/FLEET/x", b"/v1/fleet/x%2dy", b"/v1/fleet\\..\\control",
    b"/v1/fleet/..;/control", b"/v1/fleet/x?x=1", b"/v1/fleet/x#x", b"http://127.0.0.1/v1/control/list-nodes",
    b"http://127.0.0.1/v1/fleet/x", b"/v1/fleet/\xc0\xae\xc0\xae/control",
]  # fmt: skip


class Upstream(ThreadingHTTPServer):
    """Answers a POST with its path and body, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if self.path.endswith("slow"):
            time.sleep(2)
        content = self.path.encode() + b"|" + body
        self.send_response(401 if self.path.endswith("unknown") else 200)
        self.send_header("content-type", "application/protobuf")
        self.send_header("content-length", str(len(content)))
        self.send_header("x-answer", "kept")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_upstream(folder: Path) -> Iterator[Upstream]:
    """An upstream with the server certificate in a folder."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server = Upstream(context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def ask(
    folder: Path, port: int, target: bytes, body: bytes = b"", *, method: bytes = b"POST", headers: bytes = b""
) -> tuple[int, bytes]:
    """Send a request line as it is; status and body of the answer, which ends with the connection."""
    length = b"" if b"chunked" in headers else b"Content-Length: %d\r\n" % len(body)
    request = (
        method + b" " + target + b" HTTP/1.1\r\nHost: zo\r\nConnection: close\r\n" + length + headers + b"\r\n" + body
    )
    return exchange(folder, port, request)


def exchange(folder: Path, port: int, request: bytes) -> tuple[int, bytes]:
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        client_context(folder / "ca.crt").wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        try:
            tls.sendall(request)
            while chunk := tls.recv(65536):
                answer += chunk
        except (ConnectionError, ssl.SSLError):
            pass  # refused while it was still sending: the answer may be there
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, content
