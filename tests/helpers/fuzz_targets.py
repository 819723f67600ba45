"""Everything that reads bytes of others, or from a disk: how it is called, valid inputs, and what it may raise."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from types import SimpleNamespace

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fuzz_layouts import layout_targets
from fuzz_private import private_targets
from fuzz_samples import (
    GRADS,
    new_folder,
    some_calibrations,
    some_evaluations,
    some_header,
    some_plan,
    some_records,
    some_replies,
)
from fuzz_target import Target
from references import split_snapshot
from toy_engine import history, toy_engine

from client.adapt import record as adaptation_record
from client.adapt.file import AdaptationFile, decode_file, encode_file
from client.adapt.record import AdaptationRecord, decode_adaptation, encode_adaptation, quantise
from client.device_identity import DeviceIdentity
from client.worker.client import make_request
from client.worker.journal import Journal, SavedState
from client.worker.runtime import WorkerRuntime
from client.worker.worker_pb2 import Event, InfoRequest, Request
from server.devices.base_models import mismatched_devices, reference_view
from server.devices.device_status import DEVICES_NAME, DeviceStatuses
from server.devices.roster import CONTENT, Introductions, _Registrations
from server.guards.device_guard import DeviceGuard
from server.guards.device_losses import DeviceLosses
from server.guards.held_out_guard import HeldOutGuard
from server.guards.round_guard import RoundGuard
from server.messaging.exchange import is_ok
from server.messaging.validation import RoundInbox
from server.rounds.inboxes import EvaluationInbox
from server.rounds.step_size import MeasuredStep
from server.rounds.sync_inbox import SyncInbox
from server.run.log import RoundReport, RunLog
from server.run.model import open_header
from server.run.range_guard import first_out_of_range
from zo_common.aggregation.mean import ClientScalars
from zo_common.binary.durable import seal, unseal
from zo_common.config.run import RunConfig
from zo_common.errors import CodecError, ConfigError, LatticeOverflow, LedgerError, ProtocolMismatch, ZOError
from zo_common.ledger.file import LedgerFile, read_ledger
from zo_common.ledger.ledger import (
    CHAIN_BYTES,
    MAGIC,
    PROTOCOL,
    Ledger,
    chain_next,
    decode_ledger,
    encode_header,
    encode_ledger,
)
from zo_common.ledger.record_codec import decode_record, encode_record
from zo_common.ledger.snapshot import apply_snapshot, decode_part, encode_part, encode_snapshot
from zo_common.wire.calibration import (
    CalibrationAsk,
    decode_answer,
    decode_ask,
    encode_ask,
)
from zo_common.wire.evaluation import decode_evaluation
from zo_common.wire.plan import Status, decode_plan, decode_reply, encode_plan


def targets() -> dict[str, Target]:
    """All of them by name; each call makes folders of its own, which end with the process."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower's messages ask for it
    own = {**_messages(), **_ledgers(), **_weights(), **_adaptations(), **_server(), **_worker()}
    return {**own, **private_targets(), **layout_targets()}


def _messages() -> dict[str, Target]:
    plans = tuple(encode_plan(some_plan(records)) for records in ((), some_records()))
    plans = (*plans, encode_plan(replace(some_plan(), curvature=True)))

    steps = MeasuredStep(RunConfig(output=str(new_folder())))

    def inboxes(data: bytes) -> None:
        asked = {1: some_plan()}
        for votes, curved in ((False, False), (True, False), (False, True)):
            inbox = RoundInbox({1: replace(some_plan(), curvature=curved)}, 1e6, votes=votes)
            inbox.put(1, data)
            inbox.agree_on_checksum()
            inbox.scalars()
            steps.used(1, inbox, 1)
        EvaluationInbox(asked).put(1, data)
        SyncInbox(asked).put(1, data)
        is_ok(Message(RecordDict({CONTENT: ConfigRecord({"reply": data})}), dst_node_id=1, message_type="query"))

    return {
        "plan": Target(decode_plan, plans, (CodecError,)),
        "reply": Target(decode_reply, some_replies(), (CodecError,)),
        "evaluation": Target(decode_evaluation, some_evaluations(), (CodecError,)),
        "calibration-ask": Target(decode_ask, (encode_ask(CalibrationAsk(2**63, 3, 1, 8, 16, 4)),), (CodecError,)),
        "calibration-answer": Target(decode_answer, some_calibrations(), (CodecError,)),
        "record": Target(decode_record, tuple(map(encode_record, some_records())), (CodecError,)),
        "inboxes": Target(inboxes, (*some_replies(), *some_evaluations())),
    }


def _sealed_header(body: bytes) -> bytes:
    packed = zlib.compress(body)
    data = MAGIC + struct.pack("<HI", PROTOCOL, len(packed)) + packed
    return data + chain_next(b"", data)


def _sealed_record(body: bytes) -> bytes:
    data, chain = encode_header(some_header())
    return data + struct.pack("<I", len(body)) + body + chain_next(chain, body)


def _ledgers() -> dict[str, Target]:
    whole = encode_ledger(Ledger(some_header(), some_records()))
    folder = new_folder()

    def on_disk(data: bytes) -> None:
        path = folder / "ledger.zo"
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_ledger(path)
            file = LedgerFile.open(path)
        if file.ledger != found or read_ledger(path, tolerate_torn=False) != found:
            raise AssertionError("a repaired ledger reads differently")

    def use(data: bytes) -> None:
        ledger = decode_ledger(data)
        encode_ledger(ledger)
        _ = ledger.header.base_id, ledger.header.exponents, ledger.updates()

    text = json.dumps(asdict(some_header())).encode()
    return {
        "ledger": Target(use, (whole, encode_header(some_header())[0]), (LedgerError, ProtocolMismatch)),
        "ledger-file": Target(on_disk, (whole, whole[: -CHAIN_BYTES - 9]), (LedgerError, ProtocolMismatch)),
        "ledger-header": Target(use, (text,), (LedgerError,), _sealed_header, is_json=True),
        "ledger-record": Target(use, tuple(map(encode_record, some_records()[:1])), (LedgerError,), _sealed_record),
    }


def _weights() -> dict[str, Target]:
    base, now = toy_engine(), toy_engine()
    now.pretend(history(3))
    snapshot = encode_snapshot(base.state, now.state)
    of = {"base_id": 1, "client_id": 2, "server_round": 3, "checksum": 4}
    parts = [encode_part(part) for part in split_snapshot(snapshot, **of, limit=600)]
    kept = [t.weight.clone() for t in base.state.tensors]
    body_at = 7 + 14 * len(base.state.tensors)
    planes = zlib.decompress(snapshot[body_at:])

    def apply(data: bytes) -> None:
        before = base.state.checksum()
        try:
            apply_snapshot(base.state, data)
        except (CodecError, LatticeOverflow):
            if base.state.checksum() != before:
                raise AssertionError("a refused snapshot has moved weights") from None
            raise
        for tensor, weight in zip(base.state.tensors, kept, strict=True):
            tensor.weight.copy_(weight)

    refused = (CodecError, LatticeOverflow)
    return {
        "snapshot-part": Target(decode_part, tuple(parts[:2]), (CodecError,)),
        "snapshot": Target(apply, (snapshot,), refused),
        "snapshot-planes": Target(apply, (planes,), refused, lambda data: snapshot[:body_at] + zlib.compress(data, 1)),
    }


def _adaptations() -> dict[str, Target]:
    records = [
        AdaptationRecord(9, 1e-3, quantise(GRADS, layout, 2.0), layout, 4, 5)  # type: ignore[arg-type]
        for layout in ("float32", "float16", "sign")
    ]
    packed = [encode_adaptation(record) for record in records]
    files = [encode_file(AdaptationFile(record, 1, "norm", "unit", "en", (9, 8), 3)) for record in records]

    def use(data: bytes) -> None:
        record = decode_adaptation(data)
        if encode_adaptation(record) != data:
            raise AssertionError("an adaptation has two encodings")

    def resealed(body: bytes) -> bytes:
        return body + adaptation_record._digest(body)

    return {
        "adaptation": Target(use, tuple(packed), (CodecError,)),
        "adaptation-sealed": Target(use, tuple(data[:-8] for data in packed), (CodecError,), resealed),
        "adaptation-file": Target(decode_file, tuple(files), (CodecError, ProtocolMismatch)),
        "adaptation-body": Target(
            decode_file,
            tuple(unseal(data, b"ZTAF", 1) for data in files),
            (CodecError,),
            lambda body: seal(b"ZTAF", 1, body),
        ),
    }


def _server() -> dict[str, Target]:
    folder = new_folder()
    statuses = DeviceStatuses()
    statuses.of(1).scalars.rounds = 3
    statuses.failed(2, 3, "client-error", "no disk")
    statuses.save(folder, 3)
    devices = (folder / DEVICES_NAME).read_bytes()
    log = RunLog(new_folder())
    for number in (1, 2):
        log.append(RoundReport(number, 1e-3, 3, 3, 0.5))
    config = RunConfig(model="m", data="d", server_model=False)
    engine = toy_engine()
    hello = {"client_id": 4, "num_examples": 12, "skipped": 1, "name": "anna", **engine.describe()}

    def load(data: bytes) -> None:
        (folder / DEVICES_NAME).write_bytes(data)
        again = DeviceStatuses()
        again.load(folder, 3)
        for client in (1, 2):
            again.may_be_asked(client, 4)
            again.failed(client, 4, "client-error", "x")
            again.answered(client, 5)
        again.save(folder, 5)

    def resume(data: bytes) -> None:
        log.path.write_bytes(data)
        found = RunLog(log.path.parent, resume_after=2)
        found.total("up")

    row = {"server_round": 1, "learning_rate": 1e-3, "per_direction": 2.0, "along_signal": -1.0, "along_noise": 0.5}
    row |= {"noise_share": 0.2, "along_error": 0.1, "room": 1.0}
    steps = MeasuredStep(replace(config, output=str(folder)))

    def take_up(data: bytes) -> None:
        (folder / "steps.jsonl").write_bytes(data)
        steps.take_up(Ledger(some_header(), some_records()))
        steps.planned(4)
        inbox = RoundInbox({1: replace(some_plan(), curvature=True)}, 1e6)
        inbox.put(1, some_replies()[-1])
        steps.used(4, inbox, 4)

    def introduce(data: bytes) -> None:
        registrations = _Registrations(Introductions())
        answer = Message(RecordDict({CONTENT: ConfigRecord({"hello": data})}), dst_node_id=1, message_type="query")
        registrations.take(answer)
        registrations.problems()
        with suppress(ConfigError):
            reference = reference_view(None, registrations.members.values())
            mismatched_devices(reference, registrations.members.values())
            header = open_header(config, reference)
            encode_header(header)
            decode_ledger(encode_header(header)[0])
            first_out_of_range([ClientScalars(4, header.base_id, 3, GRADS)], 1e-3, "examples", header)

    guard = HeldOutGuard.__new__(HeldOutGuard)  # what reads its log needs neither model nor speech
    RoundGuard.__init__(guard, config, None, "loss of 3 of dev", lambda *_: None)  # type: ignore[arg-type]
    guard._data, guard._path = (0, 0, 0), folder / "guard.jsonl"  # type: ignore[assignment]
    closing = {"chosen": "best", "record": True, "stopped": False, "rounds": 2, "why": "the best", "candidates": {}}
    good = {"server_round": 0, "good": True, "of": "loss of 3 of dev", "loss": 1.0, "losses": [0.5, 1.0, 1.5]}
    bad = {"server_round": 2, "good": False, "of": "loss of 3 of dev", "loss": None, "after": 0}
    looks = [json.dumps(row) for row in (good, bad, good | {"server_round": 3, "closing": closing})]

    def look_back(data: bytes) -> None:
        guard._path.write_bytes(data)
        guard._rows, guard._best, guard._best_round, guard._last, guard._refusals = [], None, 0, None, 0
        with suppress(ConfigError):
            guard._take_up(3)
            json.dumps((guard.taken_back, guard.closings, guard.step_factor, guard._refusals))

    asked = DeviceGuard(replace(config, output=str(new_folder())), None, lambda: DeviceLosses({}))
    ledger = SimpleNamespace(ledger=SimpleNamespace(last_round=3))
    asked._state = SimpleNamespace(ledger=ledger)  # type: ignore[assignment]
    seen = good | {"of": asked._of, "devices": {"4": [5.5, 10], "7": [1.5, 2]}, "broken": [9]}
    others = [{"server_round": 3, "of": "", "trial": 2}, {"server_round": 3, "of": "", "missed": 0}]
    answers = [json.dumps(row) for row in (seen, bad | {"of": asked._of}, *others, seen | {"closing": closing})]

    def look_back_on_devices(data: bytes) -> None:
        asked._path.write_bytes(data)
        asked._rows, asked._best, asked._best_round, asked._last, asked._refusals = [], None, 0, None, 0
        with suppress(ConfigError):
            asked._take_up(3)
            json.dumps((asked.taken_back, asked.closings, asked.step_factor, asked._refusals, asked.summary()))

    return {
        "guard.jsonl of devices": Target(look_back_on_devices, ("\n".join(answers).encode(),), is_json=True),
        "guard.jsonl": Target(look_back, ("\n".join(looks).encode(), looks[2].encode()), is_json=True),
        "devices.json": Target(load, (devices,), is_json=True),
        "rounds.jsonl": Target(resume, (log.path.read_bytes(), log.path.read_bytes().split(b"\n")[0]), is_json=True),
        "steps.jsonl": Target(take_up, (json.dumps(row | {"devices": 3}).encode(),), (ConfigError,), is_json=True),
        "introduction": Target(introduce, (json.dumps(hello).encode(),), is_json=True),
    }


def _worker() -> dict[str, Target]:
    from google.protobuf.message import DecodeError

    folder = new_folder()
    journal = Journal(folder)
    runtime = WorkerRuntime({"model": "toy", "data": "none"}, journal, None)  # type: ignore[arg-type]
    settings = RunConfig(model="m", data="d").to_mapping()
    identity = DeviceIdentity(4, 1, 3)
    requests = [make_request(encode_plan(some_plan(some_records())), settings, identity).SerializeToString()]
    requests.append(make_request(b"ZS", {}, identity, Request.PART).SerializeToString())

    def ask(data: bytes) -> None:
        request = Request.FromString(data)
        for kind in ("train", "evaluate", "sync"):
            with suppress(CodecError, ConfigError):
                asked, _ = runtime.prepare(kind, request, identity)  # type: ignore[arg-type]
                asked.refuse(Status.BUSY, "busy")
        for other in (InfoRequest, Event):
            with suppress(DecodeError):
                other.FromString(data)

    engine = toy_engine()
    engine.pretend(history(3))
    journal.save(engine)
    journal.save_answer(b"d" * 32, some_replies()[0])
    saved = SavedState(engine.config.to_mapping(), engine.fingerprint, 0, 3, engine.state.checksum())
    whole = {name: (folder / name).read_bytes() for name in ("device.state", "ledger.zo", "answer.bin")}

    def recover(name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            for each, content in whole.items():
                (folder / each).write_bytes(data if each == name else content)
            found = journal.saved()
            engine.rewind(0)
            if found is not None:
                journal.recover(engine, found)
            journal.answer()
            journal._file = None

        return read

    def sealed_state(data: bytes) -> bytes:
        return seal(b"ZOST", 1, data)

    return {
        "worker-request": Target(ask, tuple(requests), (DecodeError,)),
        "worker-settings": Target(
            lambda data: runtime.settings(data.decode(errors="surrogateescape")),
            (json.dumps(settings).encode(),),
            (ZOError,),
            is_json=True,
        ),
        "journal-state": Target(
            recover("device.state"), (json.dumps(asdict(saved)).encode(),), (), sealed_state, is_json=True
        ),
        "journal-ledger": Target(recover("ledger.zo"), (whole["ledger.zo"],)),
        "journal-answer": Target(recover("answer.bin"), (whole["answer.bin"],)),
    }
