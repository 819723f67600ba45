"""The worker's runtime: its model, recordings and saved state, and its answers to requests."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Lock
from typing import Any

from client.device import requests as device
from client.device.calibration import WITH_LIMIT, calibrate
from client.device.demands import NO_DEMANDS, Demands
from client.device.engine import Cancelled, Engine
from client.device.masked_seeds import MASKED_NAME, MaskedSeeds
from client.device.privacy_account import PrivacyAccount
from client.device.run_seeds import SEEDS_NAME, RunSeeds
from client.device.secure_sums import InMemory, SecureSums
from client.device.sum_keys import SumKeys
from client.device.warm import data_key, engine_key, forget_recordings, warm_engine
from client.device_identity import DeviceIdentity
from client.error_text import error_text, named_error
from client.worker.at_start import describe_recordings, settings_at_start
from client.worker.job import Job, Kind, Request
from client.worker.job_queue import BUSY, JobQueue, Work
from client.worker.journal import Journal
from client.worker.refusals import refusal, status_text
from client.worker.repeats import may_repeat, terms_of
from client.worker.worker_pb2 import Request as WorkerRequest
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, SecureAggregationError, ZOError
from zo_common.ledger.snapshot import SnapshotPart, decode_part
from zo_common.speech.stamp import stamp
from zo_common.wire.calibration import CalibrationAnswer, CalibrationAsk, decode_ask, encode_answer, is_calibration
from zo_common.wire.evaluation import EvaluationReply, encode_evaluation
from zo_common.wire.masked_reply import is_masked
from zo_common.wire.plan import Plan, Reply, Status, decode_plan, decode_reply, encode_plan, encode_reply

logger = logging.getLogger(__name__)
_MAX_HELLOS = 8
_EX_SOFTWARE = 70


class WorkerRuntime:
    """Runtime that answers requests with one engine; all but `hello` and `status` runs on the queue's thread.

    Args:
        own: settings of this device in kebab-case, which override a run's: model, data, device, precision …
        account: the privacy limit of the device's owner for all runs.
        demands: what the owner demands of each of them.
        keys: reads those of this device's secure sums; default: neither key nor peers.
    """

    def __init__(
        self,
        own: dict[str, Any],
        journal: Journal,
        queue: JobQueue,
        account: PrivacyAccount | None = None,
        demands: Demands = NO_DEMANDS,
        keys: Callable[[], SumKeys] = SumKeys,
    ) -> None:
        # a server must not choose where a device writes
        self._own = {"feature-cache": ""} | own
        self._journal = journal
        self._queue = queue
        self._account, self._demands = account, demands
        self._seeds = RunSeeds(journal.folder / SEEDS_NAME)
        self._masked = MaskedSeeds(journal.folder / MASKED_NAME)
        limited = account is not None or demands.least_privacy != "none"
        self.sums = SecureSums(keys, self._masked, InMemory(), limited=limited)
        self._lock = Lock()  # whoever holds it may use the engine
        self._engine: Engine | None = None
        self._hellos: OrderedDict[object, dict[str, object]] = OrderedDict()
        self._stamp: object = None
        self._state = 0, 0  # round and checksum
        self.last: dict[str, Any] = {}

    def start(self) -> None:
        """Load the model, return to the saved state, and read the table of recordings.

        Raises:
            ZOError: the model or the recordings cannot be read.
        """
        saved = self._journal.saved()
        config = settings_at_start(saved, self._own)
        with self._lock:
            self._engine = engine = warm_engine(config)
            if saved is not None:
                self._journal.recover(engine, saved)
            self._state = engine.have_round, engine.state.checksum()
        self._stamp = stamp(config.data)
        logger.info(
            f"{config.model} on {engine.device} in {engine.precision}, {describe_recordings(config)} in "
            f"{config.data}, round {self._state[0]}, checksum {self._state[1]:016x}"
        )
        answer = self._journal.answer()
        if answer is not None:
            self._queue.remember(*answer)

    def settings(self, text: str, *, own: bool = True) -> RunConfig:
        """Return the run's settings, with this device's own unless `own` is false.

        Raises:
            ConfigError: the text is not JSON, or not settings.
        """
        try:
            return RunConfig.from_mapping(json.loads(text) | (self._own if own else {}))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"the run config is not a JSON object of settings ({str(error)[:200]})") from None

    def hello(self, config: RunConfig, identity: DeviceIdentity) -> bytes:
        """Return the introduction to a run's server; during work, the last one for the same settings."""
        key = engine_key(config), data_key(config, identity.partition_id, identity.num_partitions), identity.client_id
        job = self._queue.job
        if self._lock.acquire(timeout=30.0 if job is None else 0.2):
            try:
                self._prepare(config)
                introduction = device.hello(config, identity)
                if "error" not in introduction:
                    self._hellos[key] = introduction
                    self._hellos.move_to_end(key)
                    while len(self._hellos) > _MAX_HELLOS:
                        self._hellos.popitem(last=False)
            finally:
                self._lock.release()
        else:
            message = f"this device is {BUSY}: ask it again later"
            refusal = {"client_id": identity.client_id, "error": message, "stop": False, "busy": True}
            introduction = self._hellos.get(key) or refusal
        return json.dumps(introduction).encode()

    def prepare(self, kind: Kind, request: Any, identity: DeviceIdentity) -> tuple[Request, Work]:
        """Decode a request; return its identity and its work.

        Raises:
            ConfigError, CodecError: the settings or the bytes cannot be used.
        """
        config = self.settings(request.settings)
        content = request.content
        if kind == "sync" and is_calibration(request.payload):
            return self._calibration(config, decode_ask(request.payload), identity, request.payload)
        if content == request.PART:
            part = decode_part(request.payload)
            plan, base_id, server_round, asks = None, part.base_id, part.server_round + 1, request.payload
        else:
            part = None
            plan = decode_plan(request.payload)
            base_id, server_round = plan.base_id, plan.server_round
            # a known state has one answer, whichever rounds were sent along
            asks = encode_plan(replace(plan, records=())) if plan.checksum else request.payload
        looks = content == request.LOOK
        chosen = config
        if kind == "evaluate":
            chosen = (device.guard_settings if looks else device.held_out_settings)(config)
        recordings = data_key(chosen, identity.partition_id, identity.num_partitions)
        most = config.guard_utterances if looks else 0
        secure = self._sharers(kind, config, request.secure)
        terms = terms_of(config, self._demands, self._account, secure)
        masked = None if secure else self._masked
        again = plan is None or may_repeat(kind, plan, chosen, identity, self._demands, self._account, masked)
        described = repr((kind, content, engine_key(config), recordings, most, identity.client_id, terms))
        asked = Request(
            kind=kind,
            digest=hashlib.sha256(described.encode() + asks).digest(),
            server_round=server_round,
            run=(base_id, config.run_seed, identity.client_id),
            refuse=lambda status, message: refusal(kind, plan, part, self.have_round, status, message),
            steps=plan.local_steps if plan and kind == "train" else 0,
            num_queries=plan.estimator.num_queries if plan and kind == "train" else 1,
            repeats=again,
        )
        if secure and plan is not None:
            sent = self.settings(request.settings, own=False)
            return asked, lambda job: self._masked_work(job, config, sent, plan, identity, secure)
        return asked, lambda job: self._work(job, config, plan, part, identity, content)

    def _sharers(self, kind: Kind, config: RunConfig, secure: bytes) -> bytes:
        """Return the list of sharers that came with a plan; of a run with secure sums, every plan has one."""
        if kind == "train" and bool(secure) != config.secure_aggregation:
            raise SecureAggregationError(
                "a plan came without the list of sharers: its reply would be seen alone"
                if config.secure_aggregation
                else "a list of sharers came with a plan whose run has no secure sums: set secure-aggregation"
            )
        return secure if kind == "train" else b""

    def _calibration(
        self, config: RunConfig, ask: CalibrationAsk, identity: DeviceIdentity, payload: bytes
    ) -> tuple[Request, Work]:
        """As `prepare`, for a calibration's question."""

        def refuse(status: Status, message: str) -> bytes:
            return encode_answer(CalibrationAnswer(status, ask.seed, ask.client_id, message=message))

        def work(job: Job) -> tuple[bytes, bool]:
            started, status = time.monotonic(), "stopped"
            with self._lock:
                self._prepare(config)
                try:
                    if self._account is not None:
                        found = CalibrationAnswer(Status.ERROR, ask.seed, ask.client_id, message=WITH_LIMIT)
                    else:
                        found = calibrate(config, ask, identity, self._synced, self._demands)
                    status = found.status.name.lower() + (f": {found.message}" if found.message else "")
                finally:
                    self._settle()
                    self._report_outcome(job, status, time.monotonic() - started)
            return encode_answer(found), False

        described = repr(("calibrate", engine_key(config), identity)).encode()
        digest = hashlib.sha256(described + payload).digest()
        return Request("sync", digest, 1, (0, config.run_seed, ask.client_id), refuse), work

    def _work(
        self,
        job: Job,
        config: RunConfig,
        plan: Plan | None,
        part: SnapshotPart | None,
        identity: DeviceIdentity,
        content: int,
    ) -> tuple[bytes, bool]:
        """Work on the queue's thread; return the packed reply, and whether it may be repeated."""
        started, status, settled = time.monotonic(), "stopped", False
        with self._lock:
            self._prepare(config)
            try:
                reply: Reply | EvaluationReply
                if part is not None:
                    reply = device.take_part(config, part, self._synced)
                elif plan is not None and content == WorkerRequest.REBUILD:
                    reply = device.rebuild(config, plan, self._synced)
                elif plan is not None and job.request.kind == "train":
                    reply = self._train(job, config, plan, identity)
                elif plan is not None and job.request.kind == "evaluate":
                    ask = device.check_held_out if content == WorkerRequest.LOOK else device.evaluate
                    reply = ask(config, plan, identity, job.on_progress, self._synced, self._account, self._demands)
                else:
                    assert plan is not None
                    reply = device.sync(config, plan, self._synced)
                status = status_text(reply)
                # only training moves weights after their checksum was computed
                settled = reply.status is Status.OK and job.request.kind != "train"
            finally:
                if not settled:
                    self._settle()
                self._report_outcome(job, status, time.monotonic() - started)
            answer = encode_evaluation(reply) if isinstance(reply, EvaluationReply) else encode_reply(reply)
            again = reply.status is Status.OK and job.request.kind != "sync"
            if again:
                self._journal.save_answer(job.request.digest, answer)
            return answer, again

    def _train(self, job: Job, config: RunConfig, plan: Plan, identity: DeviceIdentity) -> Reply:
        """Train; a seed that was masked is not answered in the clear, whatever run asks."""
        try:
            if not config.secure_aggregation:
                self._masked.refuse_bare(plan.seed)
        except ConfigError as error:
            return Reply(Status.ERROR, plan.server_round, 0, plan.client_id, plan.seed, 0, message=error.public_text)
        hidden = plan.privacy is not None or config.secure_aggregation
        on_step = job.on_hidden_step if hidden else job.on_step
        seeds = self._seeds_of(config, plan)
        return device.train(config, plan, identity, on_step, self._synced, self._account, seeds, self._demands)

    def _masked_work(
        self, job: Job, config: RunConfig, sent: RunConfig, plan: Plan, identity: DeviceIdentity, secure: bytes
    ) -> tuple[bytes, bool]:
        """As `_work`, for a plan of a secure sum: what is kept for repeats is masked, and in memory, as its secrets."""
        started, status = time.monotonic(), "stopped"
        with self._lock:
            self._prepare(config)
            try:
                answer = self.sums.train(plan, sent, secure, lambda: self._train(job, config, plan, identity))
                # callers may read the status: it says what the answer says
                status = "ok" if is_masked(answer) else status_text(decode_reply(answer))
            except Cancelled:
                raise
            except ZOError as error:
                message = error_text(error, identity)
                status = f"refused: {message}"
                answer = refusal("train", plan, None, self.have_round, Status.ERROR, message)
            finally:
                self._settle()
                self._report_outcome(job, status, time.monotonic() - started)
        return answer, is_masked(answer)

    def _prepare(self, config: RunConfig) -> None:
        """Prepare the engine and the recordings for these settings; a user error is reported at their use."""
        if self._engine is not None and engine_key(self._engine.config) != engine_key(config):
            logger.info("other settings: the model is loaded again")
            self._engine = None  # one model in memory
        if self._engine is None:
            with suppress(ZOError):
                self._engine = engine = warm_engine(config)
                self._state = engine.have_round, engine.state.checksum()
        now = stamp(config.data)
        if now != self._stamp:
            logger.info("the table of recordings has changed: it is read again")
            self._stamp = now
            forget_recordings()

    def _seeds_of(self, config: RunConfig, plan: Plan) -> RunSeeds | None:
        """Return the memory of run-seeds, for plans that promise something: else a late device may join any run."""
        return self._seeds if plan.privacy is not None or config.secure_aggregation else None

    def _synced(self, engine: Engine) -> None:
        """Record the global state that the weights are, here and on disk."""
        self._engine = engine
        self._state = engine.have_round, engine.state.checksum()
        self._journal.save(engine)

    def _settle(self) -> None:
        """Bring memory and disk to one global state after any work, including a failure.

        Wrong weights are found by their checksum. If it differs or cannot be computed, the model is loaded again; if
        that fails too, as after a persistent GPU error, the process exits and a service manager starts another.
        """
        engine = self._engine
        if engine is None:
            return
        try:
            same_round = engine.have_round == self._state[0]
            if engine.state.checksum() == (self._state[1] if same_round else engine.known_checksum):
                if not same_round:
                    self._synced(engine)
                return
            message = "the weights are not those of a round that is known"
        except Exception as error:
            message = f"the checksum of the weights cannot be computed after this work ({named_error(error)})"
        logger.error(f"{message}: the model is loaded again")
        try:
            engine.rebuild()
            self._synced(engine)
        except Exception as error:
            logger.critical(
                f"the model cannot be loaded again ({named_error(error)}): the worker exits and must be restarted"
            )
            os._exit(_EX_SOFTWARE)

    def _report_outcome(self, job: Job, status: str, seconds: float) -> None:
        r = job.request
        self.last = {"kind": r.kind, "round": r.server_round, "status": status, "seconds": round(seconds, 3)}
        self.last["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        logger.info(f"{r.kind} round {r.server_round}: {' '.join(status.split())} after {seconds:.1f} s")

    def save(self) -> None:
        """Save the present state, if nothing uses the engine."""
        if self._engine is not None and self._lock.acquire(timeout=1.0):
            try:
                self._journal.save(self._engine)
            finally:
                self._lock.release()

    @property
    def have_round(self) -> int:
        """The round whose state the weights are, apart from local steps."""
        return self._state[0]

    def _reached(self) -> int:
        """Return the checksum of the weights; while they are in use or cannot be read, the last one known."""
        engine = self._engine
        if engine is not None and self._lock.acquire(blocking=False):
            try:
                return engine.state.checksum()
            except Exception:  # the next work finds this too, and settles it
                return self._state[1]
            finally:
                self._lock.release()
        return self._state[1]

    def status(self, *, refresh: bool = True) -> dict[str, Any]:
        """Return the status for people and scripts; `refresh` computes the checksum again if the engine is idle."""
        engine = self._engine
        checksum = self._reached() if refresh else self._state[1]
        return {
            "model": self._own.get("model", ""),
            "data": self._own.get("data", ""),
            "device": str(engine.device) if engine else "",
            "precision": str(engine.precision) if engine else "",
            "fingerprint": engine.fingerprint if engine else "",
            "trained_tensors": engine.config.trained_tensors if engine else "",
            "round": self._state[0],
            "start_round": engine.start_round if engine else 0,
            "checksum": f"{checksum:016x}",
            "last": self.last,
            "state_folder": str(self._journal.folder),
            "unsaved": self._journal.unsaved,
        }
