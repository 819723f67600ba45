"""A stand-in of the Hugging Face hub's HTTP interface: as much of it as publishing and fetching small files asks for.

It keeps files in memory, one commit after another of branch main, takes one token, and knows no LFS, pull requests or
users. What the real hub says beyond that is not tested with it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    """One model repository: the files of each commit, and whether it is private."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The newest commit."""
        return next(reversed(self.commits), "")

    def files(self, revision: str) -> dict[str, bytes] | None:
        """Those of a commit or of main; None where there is no such revision."""
        return self.commits.get(self.head if revision == "main" else revision)


class HubStandIn(ThreadingHTTPServer):
    """The hub at `address`, with its repositories and what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """A running stand-in."""
    hub = HubStandIn()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        path = self._path()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if name in self.server.repositories:
                return self._json({"url": f"{self.server.address}/{name}"}, 409)
            self.server.repositories[name] = Repository(asked.get("visibility") == "private")
            return self._json({"url": f"{self.server.address}/{name}"})
        user, name, action, _ = path.removeprefix("/api/models/").split("/")
        repository = self.server.repositories.get(f"{user}/{name}")
        if repository is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if action == "preupload":
            found = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": found})
        return self._commit(f"{user}/{name}", repository, body)

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        files = dict(repository.commits.get(repository.head, {}))
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(repr((len(repository.commits), sorted(files.items()))).encode()).hexdigest()
        repository.commits[commit] = files
        address = f"{self.server.address}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": address})

    def _get(self) -> None:
        path = self._path()
        if path == "/":
            return self._json({})
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        user, name, *rest = parts[2:] if api else parts
        repository = self.server.repositories.get(f"{user}/{name}")
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            return self._refuse(401 if not known else 404, "RepoNotFound", "Repository not found")
        action, revision, *inside = [*rest, "", ""] if rest else ["", "main"]
        files = repository.files(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        commit = repository.head if revision == "main" else revision
        if not api:
            file = "/".join(filter(None, inside))
            if file not in files:
                return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            tag = hashlib.sha1(files[file]).hexdigest()
            return self._send(200, files[file], {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})
        listed = [
            {"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for f, d in files.items()
        ]
        if action == "tree":
            return self._json(listed)
        siblings = [{"rfilename": file} for file in files]
        return self._json({"id": f"{user}/{name}", "sha": commit, "private": repository.private, "siblings": siblings})

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, said: str, headers: dict[str, str] | None = None) -> None:
        told = {"X-Error-Message": said, **(headers or {})} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": said}).encode(), told)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
