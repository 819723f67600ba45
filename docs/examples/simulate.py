"""A federation of two virtual devices on a folder of speech. `simulate.py speech [model]`"""

import sys

from simulations import Scenario, run_simulation

settings = {"data": sys.argv[1], "eval-split": "test", "partition-by": "iid", "num-server-rounds": 2}
if len(sys.argv) > 2:
    settings["model"] = sys.argv[2]  # hub id or directory; default: Whisper-tiny.en of the demo
result = run_simulation(Scenario("example", settings, devices=2))
print(f"WER {result.before['wer']:.1%} -> {result.after['wer']:.1%}, checksum {result.checksum}")
print(f"{result.ledger.last_round} rounds in {result.output}")
