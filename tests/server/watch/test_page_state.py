"""What the live page gets: values, differences, bytes a round, words for reasons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.harness.run_files import RunFiles
from server.run.log import RunLog
from server.run.log_file import RUN_LOG
from server.watch.log_tail import MOST_LINES, LogTail
from server.watch.page_state import State, change, encoded, state_of
from server.watch.reasons import REASONS, in_words
from server.watch.run_folder import RunFolder
from zo_common.wire.plan import Status

SERVER = Path(__file__).parents[3] / "server"


def _state(run: RunFiles) -> State:
    return state_of(RunFolder(run.folder).read(), LogTail(run.folder / RUN_LOG).read(), "resume it")


def _applied(state: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What the page makes of its copy and a change."""
    for key in ("rounds", "curve", "checks"):
        state[key] = state[key][: found[key]["from"]] + found[key]["rows"]
    for client, *moving in found["devices"]["moving"]:
        state["devices"].setdefault(client, [[], []])[0] = moving
    for client, seldom in found["devices"]["seldom"].items():
        state["devices"][client][1] = seldom
    for client in found["devices"]["gone"]:
        del state["devices"][client]
    state["log"] = (state["log"] + found["log"])[-MOST_LINES:]
    state["reasons"] |= found["reasons"]
    state["run"] = found["run"]
    return state


def _copy(state: State) -> dict[str, Any]:
    """The state as the page has it."""
    found: dict[str, Any] = json.loads(encoded({**state, "log": state["log"][1]}))
    return found


def test_changes_lead_from_any_state_to_the_next(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run", ["anna", "ben", "cleo"], privacy="example")
    states: list[State | None] = [None, _state(run)]
    run.evaluation(0, 0.3, 2.0)
    run.say("one")
    states.append(_state(run))
    run.round(loss=float("nan"), epsilon_spent=1.0)
    run.round(refused={"late": 1})
    for number in range(250):
        run.say(f"line {number}")
    states.append(_state(run))
    run.log = RunLog(run.folder, resume_after=1)  # a resume repeats the last round
    run.device(1).excluded = True
    run.round(loss=9.0)
    states.append(_state(run))
    copy: dict[str, Any] = {"rounds": [], "curve": [], "checks": [], "devices": {}, "log": [], "reasons": {}}
    for before, after in zip(states, states[1:], strict=False):
        assert after is not None
        copy = _applied(copy, json.loads(encoded(change(before, after))))
        now = _copy(after)
        assert {**copy, "reasons": {}} == {**now, "reasons": {}}
        assert now["reasons"].items() <= copy["reasons"].items()  # words of reasons that went are kept
    assert [row[1] for row in copy["rounds"]] == [None, 9.0]  # JSON knows no NaN
    assert copy["devices"]["1"][1][1] == "excluded"
    assert copy["log"][-1] == "line 249" and len(copy["log"]) == MOST_LINES
    assert copy["run"]["privacy"] == {"spent": 1.0, "limit": 0.0, "delta": None}


def test_a_change_of_a_thousand_devices_is_small(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run", [f"device-{number}" for number in range(1000)], num_server_rounds=2000)
    run.log.rows = []
    for _ in range(3):
        run.round()
    before = _state(run)
    run.round(refused={"no-answer": 7})
    after = _state(run)

    assert len(encoded(change(before, after)).encode()) < 40_000
    assert change(after, after)["devices"] == {"moving": [], "seldom": {}, "gone": []}


def test_a_log_is_read_once_and_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    tail = LogTail(path)
    assert tail.read() == (0, [])
    path.write_text("one\ntwo\nthr")
    assert tail.read() == (0, ["one", "two"])
    with path.open("a") as file:
        file.write("ee\n")
        file.writelines(f"{number}\n" for number in range(MOST_LINES))
    before, lines = tail.read()
    assert (before, lines[0], lines[-1], len(lines)) == (3, "0", str(MOST_LINES - 1), MOST_LINES)
    path.write_text("anew\n")
    assert tail.read() == (0, ["anew"])
    path.write_bytes(b"x" * (1 << 20) + b"\nlast\n")
    assert tail.read()[1][-1] == "last"


def test_every_reason_of_the_server_has_words() -> None:
    literal = re.compile(r'(?:[rR]efused?\(\s*|_fail\([^,"]+, )"([a-z_-]+)"')
    used = {code for path in SERVER.rglob("*.py") for code in literal.findall(path.read_text())}
    used |= set(re.findall(r'refusal = "([a-z-]+)"', "".join(path.read_text() for path in SERVER.rglob("*.py"))))
    used |= {status.reason for status in Status if status not in (Status.OK, Status.BEHIND)}

    assert len(used) > 20 and {code for code in used if in_words(code) == code} == set()
    assert set(REASONS) - used - {"client-non-finite"} == set()
