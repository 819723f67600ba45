"""Replay of a ledger: base model and ledger give the adapted model, to the bit. `replay_ledger.py ledger.zo`"""

from __future__ import annotations

import argparse
from pathlib import Path

from zo_common import load_model, read_ledger, replay

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("ledger", type=Path, help="ledger.zo of a run")
parser.add_argument("--model", help="base model, hub id or directory; default: the one that the ledger names")
parser.add_argument("--output", type=Path, help="directory for the adapted model, for from_pretrained")
arguments = parser.parse_args()

ledger = read_ledger(arguments.ledger)
loaded = load_model(arguments.model or ledger.header.model)
checksum = replay(loaded.model, ledger)  # checks the base model's fingerprint and the checksum of the last round
print(f"{ledger.last_round} rounds, {len(ledger.updates())} updates, checksum {checksum:016x}")

if arguments.output:
    loaded.model.save_pretrained(arguments.output)
    loaded.processor.save_pretrained(arguments.output)
    print(f"wrote {arguments.output}")
