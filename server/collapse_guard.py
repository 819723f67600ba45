"""A guard against collapse: what makes a model surer of itself and worse on labelled speech is taken back, exactly.

Objectives without transcripts have a trivial minimum, a model that always says the same. The server looks at a labelled
split of its own. A round that makes that worse is refused before it is recorded; where the guard looks only at every
n-th round, the rounds since its last good look are undone by a record of their negated coefficients, which devices
apply like any other: updates commute, so that everybody is back at the weights of that look, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from client.evaluation import Health, health
from client.speech import read_speech, spread
from server.global_model import GlobalModel
from server.run_log import read_rows, write_rows
from server.run_state import RunState
from zo_common.config import RunConfig
from zo_common.contribution import Contribution, Record
from zo_common.errors import ChecksumMismatch, ConfigError, RunStopped
from zo_common.replay import apply_all

Contributions = tuple[Contribution, ...]
LOG_NAME = "guard.jsonl"


class CollapseGuard:
    """Looks at the weights of every `guard-every`-th round and of the last one.

    A look is good unless, against the best of the good looks so far, the loss is more than `guard-tolerance` (a share)
    higher, the word error rate or the diversity of what is heard worse by more than that (a difference). The best and
    not the last, so that many small steps down are not taken for none. Every look is a line of `<output>/guard.jsonl`.

    Raises:
        ConfigError: there is no server model.
        DataError: the split cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        held: GlobalModel | None,
        on_word: Callable[[str], None],
        on_stage: Callable[[str, int, int], None] = lambda label, done, total: None,
    ) -> None:
        if held is None:
            raise ConfigError(
                f"guard-split is {config.guard_split!r} and server-model is off, but the guard looks at the server's "
                "model: leave one of the two out"
            )
        self._config, self._held, self._on_word, self._on_stage = config, held, on_word, on_stage
        self._path = Path(config.output) / LOG_NAME
        data = read_speech(
            config.data,
            held.family.reader(language=config.language),
            split=config.guard_split,
            text_column=config.text_column,
            skip_bad=config.skip_bad,
        )
        self._data = spread(data, config.guard_utterances) if config.guard_utterances else data
        self._of = f"{len(self._data)} of {config.guard_split}"  # looks at other speech cannot be compared
        self._rows: list[dict[str, Any]] = []
        self._best: Health | None = None
        self._uncertainty = 0.0  # at the last good look
        self._good_round = 0  # after which the weights were last found good
        self._refusals = 0

    def begin(self, state: RunState) -> None:
        """Take up a run: from its log where it is resumed, else the weights as they are count as good."""
        self._state = state
        last = state.ledger.ledger.last_round
        if state.resumed and self._path.exists():
            self._take_up(last)
        self._refusals = 0
        if self._best is None:
            if last:
                self._on_word(f"guard: no looks of earlier rounds are known, round {last} counts as good")
            self._note(last, self._look(), good=True)

    def _take_up(self, last: int) -> None:
        """The looks at rounds that are in the ledger: a crash may have come between a look and its round's record."""
        try:
            for row in read_rows(self._path):
                if row["server_round"] <= last:
                    self._rows.append(row)
                    if row["of"] == self._of:
                        self._remember(row["server_round"], Health(**row["health"]), row["good"])
        except (KeyError, TypeError):
            raise ConfigError(
                f"{self._path} holds a line that is not a look of the guard: move the file away, and the weights as "
                "they are count as good"
            ) from None

    def review(self, server_round: int, contributions: Contributions) -> tuple[Contributions, str]:
        """Look at the weights with a round's contributions in them.

        Returns:
            What to record for the round, and why that is something else; the weights are those after the record.
        """
        last = server_round == self._config.num_server_rounds
        since = self._state.ledger.ledger.records[self._good_round :]
        moved = bool(contributions) or any(record.contributions for record in since)
        if not moved or not (last or server_round % self._config.guard_every == 0):
            return contributions, ""
        found = self._look()
        word = self._worse(found)
        if word:
            contributions = self._undo(contributions, since)
            rounds = f"rounds {self._good_round + 1} to {server_round} are" if since else "this round is"
            word = f"{word}: {rounds} undone"
        self._note(server_round, found, good=not word)
        return contributions, word

    def stop_if_stuck(self) -> None:
        """Raises RunStopped after `max-bad-rounds` refusals in a row."""
        if self._refusals >= self._config.max_bad_rounds:
            raise RunStopped(
                f"the guard refused {self._refusals} times in a row, the weights are those of its last good look: "
                "lower the learning rate, or raise guard-tolerance, and resume the run"
            )

    def _look(self) -> Health:
        label = f"guard: decoding {self._config.guard_split}"
        return health(
            self._held.model,
            self._held.processor,
            self._data,
            language=self._config.language,
            on_progress=lambda done, total: self._on_stage(label, done, total),
        )

    def _worse(self, found: Health) -> str:
        """What is worse than at the best good look; empty if nothing is. A NaN is worse."""
        assert self._best is not None
        best, most = self._best, self._config.guard_tolerance
        faults = []
        if not found.loss <= best.loss * (1 + most):
            faults.append(f"loss {found.loss:.3f} (best {best.loss:.3f})")
        if not found.wer <= best.wer + most:
            faults.append(f"WER {found.wer:.1%} (best {best.wer:.1%})")
        if not found.diversity >= best.diversity - most:
            faults.append(f"diversity {found.diversity:.2f} (best {best.diversity:.2f})")
        if not faults:
            return ""
        fell = found.uncertainty < self._uncertainty
        entropy = f"entropy {'fell' if fell else 'rose'} from {self._uncertainty:.3f} to {found.uncertainty:.3f}"
        return f"guard: {'collapse' if fell else 'worse'}, {', '.join(faults)}, {entropy}"

    def _undo(self, contributions: Contributions, since: tuple[Record, ...]) -> Contributions:
        """Take this round's contributions out of the weights, and those since the last good look by a record."""
        state, ledger = self._held.state, self._state.ledger.ledger
        back = tuple(
            replace(c, coefficients=-c.coefficients) for record in reversed(since) for c in record.contributions
        )
        apply_all(state, [u for c in contributions for u in c.updates()], sign=-1)
        apply_all(state, [u for c in back for u in c.updates()])
        good = ledger.records[self._good_round - 1].checksum if self._good_round else ledger.header.base_checksum
        if state.checksum() != good:
            raise ChecksumMismatch(
                f"undoing the rounds after {self._good_round} leads to checksum {state.checksum():016x}, expected "
                f"{good:016x}: the server's memory is damaged, resume the run"
            )
        return back

    def _note(self, server_round: int, found: Health, *, good: bool) -> None:
        self._remember(server_round, found, good)
        self._rows.append({"server_round": server_round, "good": good, "of": self._of, "health": asdict(found)})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(self._path, self._rows)
        except OSError as error:  # a resumed run then starts from what is there
            self._on_word(f"round {server_round}: {self._path} is not written: {error.strerror}")

    def _remember(self, server_round: int, found: Health, good: bool) -> None:
        """After a bad look the round's record has led back: its weights are those of the last good look, too."""
        self._good_round = server_round
        self._refusals = 0 if good else self._refusals + 1
        if not good:
            return
        self._uncertainty = found.uncertainty
        best = self._best or found
        self._best = Health(
            min(best.loss, found.loss),
            min(best.wer, found.wer),
            found.uncertainty,
            max(best.diversity, found.diversity),
        )


def guard_for(
    config: RunConfig,
    held: GlobalModel | None,
    on_word: Callable[[str], None],
    on_stage: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> CollapseGuard | None:
    """The guard that `guard-split` asks for; a word where one is missing, or its split is the reported one."""
    if not config.guard_split:
        if not config.needs_text:
            on_word(
                f"objective {config.objective} has no guard against collapse: "
                "set guard-split to a labelled split on the server"
            )
        return None
    if config.guard_split == config.eval_split:
        on_word(f"guard-split and eval-split are both {config.eval_split!r}: what is reported has chosen the rounds")
    return CollapseGuard(config, held, on_word, on_stage)
