"""The live page in a real browser: a run is followed, hostile names stay text, and large runs are drawn at once."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cost.page import drawn, made_up
from benchmarks.harness.browser import browser, chromium_path
from benchmarks.harness.run_files import RunFiles
from benchmarks.harness.served_page import served
from server.run.lock import RunLock

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not chromium_path(), reason="no Chromium is installed: apt-get install chromium"),
]
HOSTILE = ("<img src=x onerror=\"document.title='owned'\">", "</script><script>document.title='owned'</script>", "a&b")
PATIENCE = 120_000  # milliseconds: machines of continuous integration are slow
DRAWN_MS = 1000.0  # most of one frame with 2 000 rounds and 1 000 devices, on such a machine


def _wait(page: Any, condition: str) -> None:
    """Wait for a JavaScript condition; the page's policy forbids the `eval` by which Playwright would wait itself."""
    for _ in range(PATIENCE // 100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never came true: {condition}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests of this file."""
    with browser() as made:
        yield made


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page; at the end no error may be in its console, and nothing may have been asked of another host."""
    context = chromium.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    made = context.new_page()
    made.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    made.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("request", lambda asked: wrong.append(asked.url) if "//127.0.0.1:" not in asked.url else None)
    yield made
    context.close()
    assert wrong == []


def _text(page: Any, selector: str) -> str:
    return str(page.locator(selector).first.inner_text())


def test_a_run_in_progress_is_followed_to_its_end(page: Any, tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "dialect", num_server_rounds=4)
    lock = RunLock(run.folder)
    run.evaluation(0, 0.3, 2.5)
    run.round()
    with served(run.folder) as address:
        page.goto(address)
        page.wait_for_selector("html[data-round='1']")
        assert _text(page, "#status") == "running" and "1 of 4" in _text(page, "#tiles")
        run.say("the guard checks the held-out split")
        run.round(refused={"late": 1}, loss=2.25)
        page.wait_for_selector("html[data-round='2']")
        first = _text(page, "#rounds tbody tr")
        assert "2.2500" in first and "1 of 2" in first and "1 × the answer came after its round had closed" in first
        _wait(page, "document.querySelector('#log').textContent.includes('the guard checks')")
        run.round()
        run.round()
        run.evaluation(4, 0.2, 2.0)
        run.end(verdict="the loss rose")
        lock.release()
        page.wait_for_selector(".badge.finished")
        _wait(page, "document.querySelector('#tiles').textContent.includes('30.0 % before')")
        assert _text(page, "#verdict") == "the loss rose"
        assert "from 30.0 % to 20.0 %" in page.get_attribute("#rate", "aria-label")
        assert page.locator("#loss path.train").count() == 1


def test_a_hostile_devices_name_stays_text(page: Any, tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run", HOSTILE)
    run.device(0).word = "<b onmouseover=alert(1)>word</b>"
    run.device(0).refused["<i>reason</i>"] += 1
    run.statuses.save(run.folder, 1)
    run.round(refused={"<u>late</u>": 1})
    run.say("<svg onload=\"document.title='owned'\">")
    with served(run.folder) as address:
        page.goto(address)
        page.wait_for_selector("#devices tbody tr")
        _wait(page, "document.querySelector('#log').textContent.includes('svg')")
        shown = page.locator("#devices td.name").all_inner_texts()
        assert sorted(shown) == sorted(f"{name}\nclient {client}" for client, name in enumerate(HOSTILE))
        assert page.locator("main img, main script, main b, main i, main u, pre *").count() == 0
        assert page.title() == "run: round 1"


def test_piled_up_accents_and_a_name_of_another_are_told_apart(page: Any, tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run", ["anna", "z" + "\u0301" * 90, "anna"])
    run.device(1).word = "z" + "\u0301" * 90
    run.round()
    with served(run.folder) as address:
        page.goto(address)
        page.wait_for_selector("#devices tbody tr")
        rows = page.locator("#devices tbody tr")
        assert [rows.nth(place).locator("small").inner_text() for place in (0, 1)] == ["client 0", "client 2"]
        spilled = (
            "[...document.querySelectorAll('td.name, td.words')].filter(e => getComputedStyle(e).overflow !== 'clip')"
        )
        assert page.evaluate(f"{spilled}.length") == 0
        page.fill("#find", "client 2")
        _wait(page, "document.querySelectorAll('#devices tbody tr').length === 1")


def test_rows_that_have_not_changed_outlive_a_redraw(page: Any, tmp_path: Path) -> None:
    """They hold a selection, or the place of a screen reader."""
    run = RunFiles(tmp_path / "run")
    run.round()
    with served(run.folder) as address:
        page.goto(address)
        page.wait_for_selector("#devices tbody tr")
        kept = "#rounds tbody tr, #devices tbody tr, #refused li, #ledger dd:last-of-type"
        page.evaluate(f"document.querySelectorAll('{kept}').forEach(each => {{ each.seen = true }})")
        page.evaluate("document.documentElement.dataset.drawMs = ''")
        page.check("input[value=bytes]")
        _wait(page, "document.documentElement.dataset.drawMs !== ''")
        assert page.evaluate(f"[...document.querySelectorAll('{kept}')].filter(each => !each.seen).length") == 0


def test_the_page_works_by_keyboard_and_on_a_narrow_screen(page: Any, tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run", [f"device-{number}" for number in range(120)])
    run.device(0).word = "a message that is as long as a sentence, with the reason and its remedy"
    for _ in range(12):
        run.round({"late": 1})
    command = shlex.join(["zo-asr", "server", "resume", "/srv/zo asr", "run"])
    page.set_viewport_size({"width": 360, "height": 700})
    with served(run.folder, command) as address:
        page.goto(address)
        page.wait_for_selector("#devices tbody tr")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        beyond = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        assert page.evaluate(f"{beyond}.length") == 0
        unnamed = (
            "[...document.querySelectorAll('button, input, select')].filter(e => !(e.textContent || e.labels?.length))"
        )
        assert page.evaluate(f"{unnamed}.length") == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the run"
        page.focus("#devices-pages button:last-child")
        page.keyboard.press("Enter")
        _wait(page, "document.querySelector('#devices-pages span').textContent === '51–100 of 120'")
        page.focus("#find")
        page.keyboard.type("device-119")
        _wait(page, "document.querySelectorAll('#devices tbody tr').length === 1")
        page.focus("input[value=rounds]")
        page.keyboard.press("ArrowRight")
        _wait(page, "document.querySelector('#loss').textContent.includes('kB')")
        page.focus("#copy")
        page.keyboard.press("Enter")
        _wait(page, "document.querySelector('#copied').textContent === 'copied'")
        assert page.evaluate("navigator.clipboard.readText()") == command


def test_a_thousand_devices_and_two_thousand_rounds_are_drawn_at_once(page: Any, tmp_path: Path) -> None:
    run = made_up(tmp_path / "run", 1000, 2000)
    with served(run.folder) as address:
        (milliseconds,) = drawn(page, address, run, 1)
        assert "1–50 of 1000" in _text(page, "#devices-pages")
        assert milliseconds < DRAWN_MS
