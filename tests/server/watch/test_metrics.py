"""Prometheus metrics of runs: values, names by its conventions, and the example files that use them."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.harness.run_files import RunFiles
from server.watch.run_folder import RunFolder
from server.watch.serve import HEADERS, Listening, guarded
from zo_common.errors import ConfigError

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
from prometheus_client import generate_latest

from client.worker.metrics import WorkerCollector, serve_metrics
from server.watch.exporter import exporter
from server.watch.metrics import registry_of

DEPLOY = Path(__file__).parents[3] / "deploy"
IDLE = {"round": 3, "counts": {"answered": 2}, "job": None, "unsaved": "", "last": {"seconds": 1.5}}


class Limit:
    """What a privacy account says."""

    max_epsilon, asked = 8.0, 0

    @property
    def epsilon(self) -> float:
        return 2.5


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    """A private run of three rounds, one of them empty."""
    made = RunFiles(tmp_path / "dialect", ["anna", "ben", "cleo"], privacy="example", target_epsilon=8.0)
    made.evaluation(0, 0.31, 2.5)
    made.round(epsilon_spent=1.0)
    made.round(refused={"no-answer": 3}, loss=None, epsilon_spent=1.5)
    made.round(refused={"no-answer": 1}, epsilon_spent=2.0)
    made.evaluation(3, 0.25, 2.25)
    return made


def _samples(run: RunFiles) -> dict[tuple[str, tuple[str, ...]], float]:
    registry = registry_of(lambda: [RunFolder(run.folder)], run.folder)
    return {
        (sample.name, tuple(value for key, value in sorted(sample.labels.items()) if key != "run")): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }


def test_values_are_those_of_the_files(run: RunFiles) -> None:
    found = _samples(run)

    assert found["zo_asr_rounds_total", ()] == 3 == found["zo_asr_run_last_round", ()]
    assert found["zo_asr_rounds_empty_total", ()] == 1
    assert found["zo_asr_run_rounds_target", ()] == 40 and found["zo_asr_run_active", ()] == 0
    assert found["zo_asr_replies_total", ()] == 5
    assert found["zo_asr_replies_refused_total", ("no-answer",)] == 4
    assert found["zo_asr_payload_bytes_total", ("up",)] == 5 * 82
    assert found["zo_asr_last_round_devices", ("answered",)] == 2
    assert found["zo_asr_held_out_error_ratio", ("wer",)] == 0.25 and found["zo_asr_held_out_loss", ()] == 2.25
    assert (found["zo_asr_privacy_epsilon_spent", ()], found["zo_asr_privacy_epsilon_limit", ()]) == (2.0, 8.0)
    assert found["zo_asr_ledger_bytes", ()] == run.ledger.stat().st_size
    assert found["zo_asr_devices_lag_rounds", ()] == 2  # anna answered in round 1
    assert found["zo_asr_disk_free_bytes", ()] > 0


def test_a_run_is_finished_once_it_has_ended_with_a_good_result(run: RunFiles) -> None:
    assert _samples(run)["zo_asr_run_finished", ()] == 0
    run.end()
    found = _samples(run)
    assert found["zo_asr_run_finished", ()] == 1  # after 3 of 40 rounds: a guard may end a run
    assert found["zo_asr_run_start_timestamp_seconds", ()] == (run.folder / "settings.jsonl").stat().st_mtime
    run.end(verdict="the result is worse than its start")
    assert _samples(run)["zo_asr_run_finished", ()] == 0


def test_a_name_that_is_no_text_does_not_break_a_scrape(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / os.fsdecode(b"run-\xff"))
    run.round()
    registry = registry_of(lambda: [RunFolder(run.folder)], run.folder)
    assert b'zo_asr_run_last_round{run="run-\\\\xff"} 1.0' in generate_latest(registry)


def _all_metrics(run: RunFiles) -> list[Any]:
    spent: Any = Limit()
    worker = WorkerCollector(lambda: IDLE, (spent, run.folder / "privacy.account"))
    return [*registry_of(lambda: [RunFolder(run.folder)], run.folder).collect(), *worker.collect()]


def test_names_are_by_prometheus_conventions_and_no_label_tells_who_spoke(run: RunFiles) -> None:
    metrics = _all_metrics(run)
    labels = {label for metric in metrics for sample in metric.samples for label in sample.labels}

    assert all(re.fullmatch(r"zo_asr_[a-z][a-z_]*", metric.name) and metric.documentation for metric in metrics)
    assert labels == {"run", "state", "metric", "standing", "reason", "direction", "outcome"}
    for metric in metrics:
        for sample in metric.samples:
            assert sample.name == metric.name + ("_total" if metric.type == "counter" else "")
            assert not {"anna", "ben", "cleo"} & set(sample.labels.values())


@pytest.mark.parametrize("name", ["alerts.yml", "grafana-dashboard.json"])
def test_example_files_use_metrics_and_labels_that_exist(run: RunFiles, name: str) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    known = {sample.name for metric in _all_metrics(run) for sample in metric.samples}
    labels = {label for metric in _all_metrics(run) for sample in metric.samples for label in sample.labels}
    used = set(re.findall(r"zo_asr_\w+", text))

    assert used and used <= known
    grouped = {each.strip() for found in re.findall(r"by \(([^)]*)\)", text) for each in found.split(",")}
    assert grouped <= labels | {"instance"}
    assert set(re.findall(r"\{(\w+)=", text)) <= labels


def test_alert_rules_and_the_dashboard_have_what_their_programs_need() -> None:
    rules = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())

    assert len({rule["alert"] for rule in rules}) == len(rules) >= 6
    assert all(rule["expr"] and rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
    assert len({panel["id"] for panel in panels}) == len(panels)
    ages = [rule["expr"] for rule in rules if "humanizeDuration" in rule["annotations"]["summary"]]
    assert ages and all(expression.startswith("time() - ") for expression in ages)  # the value is the left operand's
    assert all(each["gridPos"]["x"] + each["gridPos"]["w"] <= 24 and each["targets"] for each in panels)
    assert scraped["rule_files"] == ["alerts.yml"]


def test_the_worker_says_what_it_does_and_counts_its_budget_only_when_the_account_changed(tmp_path: Path) -> None:
    class Counted(Limit):
        @property
        def epsilon(self) -> float:
            self.asked += 1
            return 2.5

    limit: Any = Counted()
    path = tmp_path / "privacy.account"
    path.write_bytes(b"1")
    worker = WorkerCollector(lambda: IDLE | {"job": {"kind": "train"}, "unsaved": "disk full"}, (limit, path))
    for _ in range(2):
        found = {(s.name, *s.labels.values()): s.value for m in worker.collect() for s in m.samples}
    assert found["zo_asr_worker_state", "train"] == 1 and found["zo_asr_worker_state", "idle"] == 0
    assert found["zo_asr_worker_answers_total", "answered"] == 2
    assert found["zo_asr_worker_state_unsaved",] == 1 and found["zo_asr_worker_privacy_epsilon_spent",] == 2.5
    assert limit.asked == 1
    path.write_bytes(b"12")
    list(worker.collect())
    assert limit.asked == 2


def test_the_worker_serves_its_metrics_and_warns_where_others_can_read_them(caplog: pytest.LogCaptureFixture) -> None:
    port, end = serve_metrics("127.0.0.1:0", lambda: IDLE)
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
    finally:
        end()
    assert answer.status_code == 200 and 'zo_asr_worker_answers_total{outcome="answered"} 2.0' in answer.text
    assert "process_cpu_seconds_total" in answer.text and caplog.text == ""

    with pytest.raises(ConfigError, match=r"^metrics cannot be served on foo\.\.bar:0 \(it is no name of a host\): "):
        serve_metrics("foo..bar:0", lambda: IDLE)
    serve_metrics("0.0.0.0:0", lambda: IDLE)[1]()
    assert "can be read by whoever reaches it" in caplog.text


async def _get(run: RunFiles, listening: Listening, host: str, method: str = "GET", **headers: str) -> httpx.Response:
    app = exporter(registry_of(lambda: [RunFolder(run.folder)], run.folder))
    transport = httpx.ASGITransport(guarded(app, listening))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        return await client.request(method, "/metrics", headers=headers)


def test_metrics_are_served_read_only_to_this_machine(run: RunFiles) -> None:
    here = Listening.of("127.0.0.1:9464")
    answer = asyncio.run(_get(run, here, "127.0.0.1:9464"))

    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    assert 'zo_asr_rounds_total{run="dialect"} 3.0' in answer.text
    assert all(answer.headers[name] == value for name, value in HEADERS.items())
    assert asyncio.run(_get(run, here, "localhost:9464", "POST")).status_code == 405
    assert asyncio.run(_get(run, here, "elsewhere.example")).status_code == 400


def test_others_need_the_token(run: RunFiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can be reached by others: give --token-file"):
        Listening.of("0.0.0.0:9464")
    token = tmp_path / "token"
    token.write_text("short\n")
    with pytest.raises(ConfigError, match="has 5 characters, expected 16"):
        Listening.of("0.0.0.0:9464", token)
    token.write_bytes(b"\xff" * 40)
    with pytest.raises(ConfigError, match="is no text: openssl rand -hex 16"):
        Listening.of("0.0.0.0:9464", token)
    token.write_text("0123456789abcdef\n")
    open_to_all = Listening.of("0.0.0.0:9464", token)

    def status(**headers: str) -> int:
        return asyncio.run(_get(run, open_to_all, "zo.example", **headers)).status_code

    assert status() == 401
    assert status(authorization="Bearer 0123456789abcdeg") == 401
    assert status(authorization="Bearer 0123456789abcdef") == 200
