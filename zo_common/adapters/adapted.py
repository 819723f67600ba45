"""A resident model that applies and undoes ledgers in place, to the bit, without a copy of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zo_common.adapters.base_lattice import BaseLattice
from zo_common.adapters.dialect import Dialect, Progress
from zo_common.adapters.source import LedgerSource, find_ledger
from zo_common.errors import ChecksumMismatch, ZOError
from zo_common.lattice.fingerprint import fingerprint
from zo_common.ledger.file import read_ledger, read_ledger_header
from zo_common.ledger.ledger import Ledger, LedgerHeader, TensorEntry
from zo_common.ledger.replay import require_base
from zo_common.models.compute import choose_device
from zo_common.models.load import LoadedModel, load_model

MEMORY = 256 << 20
_Stamp = tuple[int, int]  # size and time of change of a file


class AdaptedModel:
    """One model in memory, whose weights are those of its base or of any ledger made on it.

    1. `switch` undoes the active ledger and replays another one, both exactly: the result does not depend on the ledger
       before.
    2. The first replay of a ledger adds its directions up. If `memory` allows, their sum is kept, as integer grid units
       of the trained tensors alone, so that later switches cost two passes over these tensors, for any number of
       rounds. A ledger without a stored sum is undone by its negated rounds.
    3. Without a ledger the weights are the bits that were loaded.

    It serves one thread at a time: a forward pass during a switch sees weights between two ledgers.

    Args:
        loaded: model at its base weights, float32, on the device where it computes; do not move it afterwards.
        memory: maximum bytes of all stored sums; the least recently used are dropped first.
        threads: number of CPU threads; None for torch's choice. It changes no bit.

    Attributes:
        model, processor: as `load_model` gives them.
        fingerprint: of the base, 64 hex digits.
    """

    def __init__(self, loaded: LoadedModel, *, memory: int = MEMORY, threads: int | None = None) -> None:
        self.model, self.processor = loaded
        self.fingerprint = fingerprint(self.model)
        self._memory, self._threads = memory, threads
        self._lattices: dict[tuple[TensorEntry, ...], BaseLattice] = {}
        self._files: dict[Path, tuple[_Stamp, Dialect]] = {}
        self._objects: list[Dialect] = []
        self._places: dict[str, Path] = {}
        self._recent: list[Dialect] = []  # with a sum, the last used at the end
        self._inside: BaseLattice | None = None
        self._on: Dialect | None = None
        self._whole = True

    @property
    def loaded(self) -> LoadedModel:
        """Model and processor, as `zo_common.speech` takes them."""
        return LoadedModel(self.model, self.processor)

    @property
    def ledger(self) -> Ledger | None:
        """The active ledger; None at the base."""
        return self._on.ledger if self._on else None

    @property
    def checksum(self) -> int | None:
        """State checksum of the active ledger, a u64; None at the base, which its fingerprint identifies."""
        return self._on.checksum if self._on else None

    @property
    def remembered(self) -> int:
        """Bytes of the stored sums at present."""
        return sum(d.difference.bytes for d in self._recent if d.difference is not None)

    def switch(self, ledger: LedgerSource | None, on_progress: Progress | None = None) -> int | None:
        """Undo the active ledger and apply another one; None returns to the base.

        Args:
            ledger: as in `load_adapted`. A file that has grown since is read again; of a hub id
                the first download counts.
            on_progress: called with (directions done, total) while rounds are replayed.

        Returns:
            The state checksum, equal to the ledger's if it records one; None at the base.

        Raises:
            LedgerError, ProtocolMismatch: there is no such ledger, or it cannot be read.
            WrongBaseModel: it was made on another base.
            LatticeOverflow: it leads outside the lattice.
            ChecksumMismatch: its checksum is not reached, or something else has moved the weights.
                In all other cases the weights are as before.
        """
        wanted = None if ledger is None else self._dialect(ledger)
        before = self._on
        with self._moving():
            try:
                self._move(wanted, on_progress)
            except ZOError:
                self._move(before, None)
                raise
        return self.checksum

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Guard a switch: if one ends between two ledgers, as by Ctrl-C, the next one raises."""
        if not self._whole:
            raise ChecksumMismatch(
                "a switch was interrupted, and the weights are between two ledgers, expected one: load the model again"
            )
        before, self._whole = self._on, False
        try:
            yield
            self._whole = True
        except ZOError:
            self._whole = self._on is before
            raise

    def _move(self, wanted: Dialect | None, on_progress: Progress | None) -> None:
        if wanted is not None and wanted is self._on and self._inside is not None:
            self._inside.state.expect_checksum(wanted.checksum)
            return
        if self._on is not None and self._inside is not None:
            on, self._on = self._on, None
            on.undo(self._inside.state)
        self._enter(wanted.ledger.header if wanted else None)
        if wanted is not None and self._inside is not None:
            wanted.apply(self._inside.state, self._memory, on_progress)
            self._on = wanted
            self._remember(wanted)

    def _enter(self, header: LedgerHeader | None) -> None:
        """Move to the lattice of a ledger, or to the base's bits."""
        if self._inside is not None:
            if header is not None and header.tensors == self._inside.tensors:
                return
            self._inside.leave()
            self._inside = None
        if header is None:
            return
        lattice = self._lattices.get(header.tensors)
        if lattice is None:
            lattice = self._lattices[header.tensors] = BaseLattice(self.model, header, self._threads)
        else:
            lattice.enter()
        self._inside = lattice

    def _remember(self, used: Dialect) -> None:
        """Drop the least recently used sums until the others fit."""
        self._recent = [d for d in self._recent if d is not used and d.difference is not None]
        if used.difference is not None:
            self._recent.append(used)
        while self.remembered > self._memory:
            self._recent.pop(0).difference = None

    def _dialect(self, source: LedgerSource) -> Dialect:
        """Return the ledger of a source, read at its first use and whenever its file has changed."""
        if isinstance(source, Ledger):
            found = next((d for d in self._objects if d.ledger is source), None)
            if found is None:
                require_base(self.fingerprint, source.header)
                found = Dialect(source)
                self._objects.append(found)
            return found
        path = self._places.get(str(source))
        if path is None or not path.is_file():
            path = self._places[str(source)] = find_ledger(source)
        stat = path.stat()
        stamp = stat.st_size, stat.st_mtime_ns
        known = self._files.get(path)
        if known is None or known[0] != stamp:
            ledger = read_ledger(path)
            require_base(self.fingerprint, ledger.header)
            known = self._files[path] = stamp, Dialect(ledger)
        return known[1]


def _language(ledger: LedgerSource | None) -> str:
    """Return the language of a ledger's run, for models with an adapter per language."""
    if ledger is None:
        return ""
    header = ledger.header if isinstance(ledger, Ledger) else read_ledger_header(find_ledger(ledger))
    return str(header.settings.get("language", ""))


def load_adapted(
    model: str | Path | LoadedModel,
    ledger: LedgerSource | None = None,
    *,
    device: str = "auto",
    language: str = "",
    memory: int = MEMORY,
    threads: int | None = None,
) -> AdaptedModel:
    """Load a base model and put a ledger on it, its checksum verified.

    Args:
        model: hub id or directory of the base, or what `load_model` gave.
        ledger: a ledger; or the path of one, or of a folder with `ledger.zo`, such as a run's; or the hub id of an
            adapter's repository; None leaves the base.
        device: where the model computes: auto, cpu, cuda, cuda:1 …; a model that is loaded stays where it is.
        language: of the speech, for models with an adapter for each (MMS); by default the ledger's.
        memory: see `AdaptedModel`.
        threads: see `AdaptedModel`.

    Raises:
        ModelNotFound, UnsupportedModel: as `load_model`.
        ConfigError: torch cannot use the device.
        LedgerError, WrongBaseModel, LatticeOverflow, ChecksumMismatch: as `AdaptedModel.switch`.
    """
    if not isinstance(model, LoadedModel):
        place = choose_device(device)
        model = load_model(str(model), language=language or _language(ledger))
        model.model.to(place)
    adapted = AdaptedModel(model, memory=memory, threads=threads)
    adapted.switch(ledger)
    return adapted
