"""The page's server: files, the policy of its answers, who may read, and the stream of events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.run_files import RunFiles
from server.deploy.watching import folders_of, resume_command, run_folder
from server.run.lock import RunLock
from server.watch.dashboard import dashboard
from server.watch.live import LiveRun
from server.watch.run_folder import RunFolder
from server.watch.serve import HEADERS, Listening, guarded
from zo_common.errors import ConfigError

TOKEN = "0123456789abcdef"


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    """A run of two rounds."""
    made = RunFiles(tmp_path / "run")
    made.round()
    made.round()
    return made


@asynccontextmanager
async def _client(run: RunFiles, listening: Listening, host: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    app = guarded(dashboard(LiveRun(RunFolder(run.folder))), listening)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
        yield client


def test_files_come_with_a_policy_that_forbids_the_rest_of_the_web(run: RunFiles) -> None:
    async def check() -> None:
        async with _client(run, Listening.of("127.0.0.1:0")) as client:
            for path in ("/", "/dashboard.css", "/dashboard.js", "/chart.js", "/icon.svg"):
                answer = await client.get(path)
                assert answer.status_code == 200 and answer.content
                assert all(answer.headers[name] == value for name, value in HEADERS.items())
            assert (await client.post("/")).status_code == 405
            assert (await client.get("/nothing")).status_code == 404
            for host, status in (("[::1]:8645", 200), ("localhost", 200), ("rebound.example", 400), ("[", 400)):
                assert (await client.get("/", headers={"host": host})).status_code == status

    asyncio.run(check())


def test_the_static_files_name_no_other_host_and_use_no_markup_sinks() -> None:
    static = files("server.watch") / "static"
    for each in static.iterdir():
        text = each.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    page = (static / "dashboard.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page)


def test_others_sign_in_with_the_token(run: RunFiles, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    listening = Listening.of("0.0.0.0:8645", tmp_path / "token")

    async def check() -> None:
        async with _client(run, listening, "zo.example") as client:
            form = await client.get("/", headers={"accept": "text/html"})
            assert form.status_code == 401 and 'type="password"' in form.text
            assert 'content="light dark"' in form.text and 'rel="icon" href="data:,"' in form.text
            assert (await client.get("/events")).status_code == 401
            assert (await client.post("/sign-in", data={"token": "wrong"})).status_code == 401
            assert (await client.post("/sign-in", content=b"x" * 5000)).status_code == 413
            assert not client.cookies
            signed = await client.post("/sign-in", data={"token": TOKEN})
            cookie = signed.headers["set-cookie"]
            assert signed.status_code == 303 and TOKEN not in cookie
            assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
            assert "Devices" in (await client.get("/")).text

    asyncio.run(check())


def test_a_reader_gets_the_whole_run_and_then_each_change(run: RunFiles) -> None:
    async def check() -> None:
        live = LiveRun(RunFolder(run.folder))
        events = live.events()
        first = await anext(events)
        run.round(loss=7.5)
        await live._refresh()
        second = await anext(events)
        await live.close()
        assert [each async for each in events] == []
        assert first.startswith("event: whole\ndata: ") and first.endswith("\n\n")
        assert second.startswith("event: change\n")
        assert len(json.loads(first.split("data: ")[1])["rounds"]["rows"]) == 2
        added = json.loads(second.split("data: ")[1])["rounds"]
        assert (added["from"], added["rows"][-1][:2]) == (2, [3, 7.5])

    asyncio.run(check())


def test_a_folder_in_which_nothing_changed_is_not_read_again(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reads = RunFolder(run.folder), []
    read = folder.read
    monkeypatch.setattr(folder, "read", lambda: reads.append(1) or read())
    live = LiveRun(folder)

    async def check() -> None:
        for _ in range(3):
            await live._refresh()
        assert len(reads) == 1
        run.round()
        await live._refresh()
        lock = RunLock(run.folder)  # a server starts: no file has changed
        await live._refresh()
        assert (live._state or {})["run"]["status"] == "running"
        lock.release()
        await live._refresh()
        assert (live._state or {})["run"]["status"] != "running"

    asyncio.run(check())
    assert len(reads) == 4


def test_a_reader_that_missed_a_change_gets_the_whole_run_again(run: RunFiles) -> None:
    async def check() -> None:
        live = LiveRun(RunFolder(run.folder))
        events = live.events()
        await anext(events)
        for _ in range(2):
            run.round()
            await live._refresh()
        assert (await anext(events)).startswith("event: whole")

    asyncio.run(check())


def test_the_runs_of_a_deployment_are_found_by_name_or_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "deployment.toml").write_text('hosts = ["zo.example.org"]\n')
    with pytest.raises(ConfigError, match="no run has been started"):
        run_folder(tmp_path)
    listed = folders_of(tmp_path)
    for name in ("first", "second"):
        RunFiles(tmp_path / "runs" / name).round()
    assert run_folder(tmp_path).name == "second" and run_folder(tmp_path, "first").name == "first"
    assert [each.name for each in listed()] == ["first", "second"] and listed()[0] is listed()[0]
    command = resume_command(tmp_path, run_folder(tmp_path))
    assert command == f"zo-asr server resume {tmp_path} second"
    with pytest.raises(ConfigError, match=r"'third' has not been started in .*: runs are first, second"):
        run_folder(tmp_path, "third")


def test_a_runs_own_folder_will_do_and_any_other_is_refused(run: RunFiles, tmp_path: Path) -> None:
    assert run_folder(run.folder).name == "run" and resume_command(run.folder, run_folder(run.folder)) == ""
    with pytest.raises(ConfigError, match="neither a deployment folder nor a run's"):
        run_folder(tmp_path)
    with pytest.raises(ConfigError, match="has no run 'other'"):
        run_folder(run.folder, "other")
