"""Inputs of autoregressive model classes from audio, prompts and texts, through their processor's own calls."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.errors import ConfigError
from zo_common.models.ctc.forward import uses_attention_mask
from zo_common.models.tokens.batch import TokenBatch, next_tokens, padded
from zo_common.models.whisper.languages import whisper_code

Wave = NDArray[np.float32]


class Form(Protocol):
    """The input format of a model class, for one language.

    Attributes:
        end: the token that ends a text.
        most: number of tokens of the longest text.
        masked: whether the model receives a mask of the padding; if not, padding affects it.
    """

    end: int
    most: int
    masked: bool

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, without prompt and end."""

    def batch(self, waves: Sequence[Wave], texts: list[list[int]]) -> TokenBatch:
        """Return inputs and labels of mono waveforms (n,) at the processor's rate, with the tokens of their texts."""

    def to_generate(self, waves: Sequence[Wave]) -> tuple[dict[str, torch.Tensor], int]:
        """Return arguments of `generate`, and how many tokens of its answer are the prompt."""


class _Tokens:
    """Base of both formats: values from tokenizer and configuration."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor, self._tokenizer = model, processor, processor.tokenizer
        self._rate = int(processor.feature_extractor.sampling_rate)
        ends, own = _setting(model, "eos_token_id"), self._tokenizer.eos_token_id
        several = isinstance(ends, list | tuple) and own in ends
        self.end = int(own) if several else _first(ends, int(own or 0))
        decoder = model.config.get_text_config(decoder=True)
        sizes = [getattr(decoder, name, None) for name in ("max_target_positions", "max_position_embeddings")]
        self.most = min([int(size) for size in sizes if size] or [448]) - 1

    def tokens(self, text: str) -> list[int]:
        """As `Form.tokens`."""
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False).input_ids]


class Seq2SeqForm(_Tokens):
    """Encoder and decoder: the decoder begins with a start token, or with the prompt that its processor makes.

    Raises:
        ConfigError: the model does not know the language.
    """

    def __init__(self, model: Any, processor: Any, language: str) -> None:
        super().__init__(model, processor)
        self._prompt = self._started(language)
        self.most -= len(self._prompt)
        encoder = getattr(model.config, "encoder", model.config)
        self.masked = uses_attention_mask(encoder)

    def batch(self, waves: Sequence[Wave], texts: list[list[int]]) -> TokenBatch:
        """As `Form.batch`."""
        prompts = [self._prompt] * len(texts)
        fill = _first(_setting(self._model, "pad_token_id"), self.end)
        tokens = padded([[*self._prompt, *text] for text in texts], fill)
        return TokenBatch(self._audio(waves) | {"decoder_input_ids": tokens}, next_tokens(prompts, texts, self.end))

    def to_generate(self, waves: Sequence[Wave]) -> tuple[dict[str, torch.Tensor], int]:
        """As `Form.to_generate`."""
        prompt = torch.tensor([self._prompt] * len(waves))
        return self._audio(waves) | {"decoder_input_ids": prompt}, len(self._prompt)

    def _audio(self, waves: Sequence[Wave]) -> dict[str, torch.Tensor]:
        extractor = self._processor.feature_extractor
        own = getattr(type(self._processor), "audio_kwargs", {})  # such as a multiple to pad to
        known = inspect.signature(extractor.__call__).parameters
        asked = {"padding": True, "return_attention_mask": self.masked, "return_tensors": "pt"}
        asked = {name: value for name, value in own.items() if name in known} | asked
        made = extractor(list(waves), **asked | {"sampling_rate": self._rate})
        known = inspect.signature(self._model.forward).parameters
        return {name: value for name, value in made.items() if name in known}

    def _started(self, language: str) -> list[int]:
        """Return the prompt, its start token first."""
        if hasattr(self._processor, "apply_transcription_request"):
            silence = np.zeros(self._rate, np.float32)
            try:
                text = self._processor.apply_transcription_request(silence, language, tokenize=False)
            except ValueError as error:
                raise ConfigError(_unknown(language, error)) from None
            return [int(token) for token in self._processor(audio=[silence], text=text)["decoder_input_ids"][0]]
        start = [_first(_setting(self._model, "decoder_start_token_id"), self.end)]
        spoken = getattr(self._tokenizer, "lang_code_to_id", None) or {}
        code = language if language in spoken else whisper_code(language)
        if spoken and code not in spoken:
            raise ConfigError(f"language is {language!r}, the model writes {', '.join(sorted(spoken))}: name one")
        return [*start, int(spoken[code])] if spoken else start


class CausalForm(_Tokens):
    """A language model with audio in its prompt that continues with the text; the prompt is masked in the loss.

    Raises:
        ConfigError: the model does not know the language.
    """

    masked = True

    def __init__(self, model: Any, processor: Any, language: str) -> None:
        super().__init__(model, processor)
        try:
            (self._prompt,) = processor.apply_transcription_request(
                np.zeros(self._rate, np.float32), language=language, tokenize=False
            )
        except ValueError as error:
            raise ConfigError(_unknown(language, error)) from None

    def batch(self, waves: Sequence[Wave], texts: list[list[int]]) -> TokenBatch:
        """As `Form.batch`, padded behind the texts."""
        made, _ = self.to_generate(waves)
        ids, mask = made.pop("input_ids"), made.pop("attention_mask").bool()
        prompts = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
        tokens = padded(rows, self.end)
        lengths = torch.tensor([len(row) for row in rows])
        attended = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(torch.int64)
        inputs = {**made, "input_ids": tokens, "attention_mask": attended}
        return TokenBatch(inputs, next_tokens(prompts, texts, self.end))

    def to_generate(self, waves: Sequence[Wave]) -> tuple[dict[str, torch.Tensor], int]:
        """As `Form.to_generate`, padded before the prompts."""
        made = dict(
            self._processor(
                text=[self._prompt] * len(waves),
                audio=list(waves),
                text_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
                audio_kwargs={"sampling_rate": self._rate, "padding": True, "return_tensors": "pt"},
            )
        )
        return made, int(made["input_ids"].shape[1])


def _setting(model: Any, name: str) -> Any:
    """Return a special token of generation, else of the model."""
    own = getattr(model.generation_config, name, None)
    for config in (model.config, model.config.get_text_config(decoder=True)):
        own = getattr(config, name, None) if own is None else own
    return own


def _first(tokens: Any, otherwise: int) -> int:
    """Return one of the tokens that a setting names."""
    if tokens is None:
        return otherwise
    return int(tokens[0] if isinstance(tokens, list | tuple) else tokens)


def _unknown(language: str, error: ValueError) -> str:
    return f"language is {language!r}, which the model's processor refuses: {' '.join(str(error).split())[:300]}"
