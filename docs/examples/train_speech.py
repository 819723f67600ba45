"""Training on a folder of speech, in this process. `train_speech.py speech [model]`"""

import sys

from train import train

settings = {"model": sys.argv[2]} if len(sys.argv) > 2 else {}  # default: Whisper-tiny.en of the demo
result = train(
    sys.argv[1],
    num_server_rounds=2,
    on_round=lambda report: print(f"round {report.server_round}: loss {report.loss:.3f}"),
    **settings,
)
print(f"WER {result.before['wer']:.1%} -> {result.after['wer']:.1%}, checksum {result.checksum}")
