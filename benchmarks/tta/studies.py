"""The studies whose tables are in docs/results/adaptation.md: lists of `benchmarks.tta.study`, by name."""

from __future__ import annotations

_CTC = ["--model", "wav2vec2-tiny-us", "--utterances", "12"]
_CTC_STEPS = ["--learning-rates", "0.2", "--epsilons", "1e-2", "--marks", "10", "40"]
_CTC_DEFAULT = [*_CTC, "--tensors", "norms+biases", *_CTC_STEPS]
_WHISPER = ["--model", "whisper-tiny.en", "--utterances", "6"]
_WHISPER_STEPS = ["--learning-rates", "3e-2", "--epsilons", "1e-2", "--marks", "10", "20"]
_WHISPER_DEFAULT = [*_WHISPER, "--tensors", "encoder-norm", *_WHISPER_STEPS]
_ADAM = ["--methods", "adam", "--learning-rates"]
_WHISPER_TENSORS = ["--tensors", "encoder-norm", "norms,!*decoder*", "norms"]
_CTC_TENSORS = ["--tensors", "norms", "norms+biases", "norms+features"]
_LAYOUTS = ["--layouts", "float32", "float16", "sign"]

# a later option overrides an earlier one
STUDIES: dict[str, list[list[str]]] = {
    "rates-ctc": [
        [*_CTC_DEFAULT, *_CTC_TENSORS, "--learning-rates", "0.02", "0.2", "1"],
        [*_CTC, *_CTC_TENSORS, *_ADAM, "3e-4", "1e-3", "3e-3", "--marks", "10"],
    ],
    "epsilons-ctc": [[*_CTC_DEFAULT, "--epsilons", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1"]],
    "clean-ctc": [[*_CTC_DEFAULT, "--conditions", "clean", "--learning-rates", "0.02", "0.2", "1"]],
    "layouts-ctc": [[*_CTC_DEFAULT, *_LAYOUTS]],
    "curve-ctc": [
        [*_CTC_DEFAULT, "--queries", "2", "8", "32", "--marks", "1", "2", "5", "10", "20", "40"],
        [*_CTC, "--tensors", "norms+biases", *_ADAM, "1e-3", "--marks", "1", "2", "5", "10", "20", "40"],
    ],
    "rates-whisper": [
        [*_WHISPER_DEFAULT, *_WHISPER_TENSORS, "--learning-rates", "3e-3", "3e-2", "1e-1"],
        [*_WHISPER, *_WHISPER_TENSORS, *_ADAM, "3e-4", "1e-3", "3e-3", "--marks", "10"],
    ],
    "epsilons-whisper": [[*_WHISPER_DEFAULT, "--epsilons", "1e-3", "1e-2", "3e-2", "1e-1"]],
    "clean-whisper": [[*_WHISPER_DEFAULT, "--conditions", "clean", "--learning-rates", "3e-3", "3e-2", "1e-1"]],
    "layouts-whisper": [[*_WHISPER_DEFAULT, *_LAYOUTS]],
    "curve-whisper": [
        [*_WHISPER_DEFAULT, "--queries", "2", "8", "32", "--marks", "1", "2", "5", "10", "20", "40"],
        [*_WHISPER, "--tensors", "encoder-norm", *_ADAM, "1e-3", "--marks", "1", "2", "5", "10", "20", "40"],
    ],
}
