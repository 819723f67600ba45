# Two commands for a newcomer: `make demo` and `make test`. Both create .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.PHONY: demo test test-slow test-all fuzz lint reference docs proto bench bench-full bench-gpu dialect privacy attacks tta learning ctc venv clean

demo: $(STAMP)  ## eight speakers of one dialect adapt real Whisper-tiny.en
	$(BIN)/zo-asr sim demo

test: $(STAMP)  ## all tests but those of minutes, in two processes of a thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(STAMP)  ## the others, one after another: deployments of many processes with deadlines, and whole runs
	$(BIN)/python -m pytest -m slow

test-all: test test-slow  ## both

fuzz: $(STAMP)  ## a million damaged inputs to every reader of untrusted bytes
	$(BIN)/python -m tests.fuzz --inputs 1000000

reference: $(STAMP)  ## docs/settings.md and docs/commands.md, from the settings' metadata and the commands' help
	$(BIN)/python -m benchmarks.pages.settings
	$(BIN)/python -m benchmarks.pages.commands

lint: $(STAMP)  ## style, types, layers, spelling, wording, and that the pages show the committed numbers, settings and commands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/proselint check --config .proselintrc.json README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs
	$(BIN)/python -m benchmarks.pages.readme --check
	$(BIN)/python -m benchmarks.pages.settings --check
	$(BIN)/python -m benchmarks.pages.commands --check

docs: $(STAMP)  ## the site of the pages, in site/; a warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

BENCHMARKS := cost.kernel cost.step cost.replay cost.memory cost.drift cost.traffic cost.forward cost.replay_cost scale.simulation
bench: $(STAMP)  ## the comparison: small sizes, one table; rows go to benchmarks/results
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done
	$(BIN)/python -m benchmarks.pages.table

bench-full: $(STAMP)  ## the same with the largest sizes, and torch.compile
	set -e; for name in cost.kernel cost.step cost.replay cost.memory cost.drift cost.traffic; do $(BIN)/python -m benchmarks.$$name; done
	$(BIN)/python -m benchmarks.cost.forward --compile
	$(BIN)/python -m benchmarks.cost.replay_cost --full
	$(BIN)/python -m benchmarks.scale.simulation --devices 10 100 1000
	$(BIN)/python -m benchmarks.scale.thousand
	$(BIN)/python -m benchmarks.pages.table
	$(BIN)/python -m benchmarks.pages.readme

bench-gpu: $(STAMP)  ## the GPU's rows of the same table
	set -e; for name in cost.kernel_gpu cost.large_v3; do $(BIN)/python -m benchmarks.$$name; done
	set -e; for name in cost.step cost.replay cost.memory; do $(BIN)/python -m benchmarks.$$name --device cuda; done
	$(BIN)/python -m benchmarks.pages.table

dialect: $(STAMP)  ## the demo over three seeds, its figure and the README's numbers
	$(BIN)/python -m benchmarks.dialect --seeds 0 1 2
	$(BIN)/python -m benchmarks.pages.figure
	$(BIN)/python -m benchmarks.pages.readme

privacy: $(STAMP)  ## what privacy costs, what hostile devices do, and the docs' numbers
	$(BIN)/python -m benchmarks.privacy.utility
	$(BIN)/python -m benchmarks.hostile.attackers --work results/privacy/attackers.jsonl
	$(BIN)/python -m benchmarks.pages.readme

tta: $(STAMP)  ## test-time adaptation on two models and six kinds of speech, and the docs' numbers
	$(BIN)/python -m benchmarks.tta
	$(BIN)/python -m benchmarks.tta.report
	$(BIN)/python -m benchmarks.pages.readme

learning: $(STAMP)  ## learning curves of all methods on all tasks, hours: it goes on where it was killed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,learning]'
	$(BIN)/python -m benchmarks.learning --passes 6144 --forgetting --words
	$(BIN)/python -m benchmarks.learning --passes 6144 --tasks wm ctc-wm --study directions
	$(BIN)/python -m benchmarks.learning --passes 6144 --tasks wm ctc-wm --study variants
	$(BIN)/python -m benchmarks.learning --passes 6144 --tasks wm --study precision
	$(BIN)/python -m benchmarks.learning --passes 6144 --tasks ctc-wm --study tensors
	$(BIN)/python -m benchmarks.learning.memory
	$(BIN)/python -m benchmarks.pages.readme

attacks: $(STAMP)  ## what an attacker gets from scalars, and the docs' numbers
	$(BIN)/python -m benchmarks.attacks
	$(BIN)/python -m benchmarks.attacks.recorder
	$(BIN)/python -m benchmarks.attacks.report
	$(BIN)/python -m benchmarks.pages.readme

ctc: $(STAMP)  ## train the small CTC model again, from nothing
	$(BIN)/python -m simulations.models.pretrain_ctc

proto: $(STAMP)  ## the resident worker's generated code
	$(BIN)/python -m grpc_tools.protoc -I . --python_out . --pyi_out . --grpc_python_out . client/worker/worker.proto

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) models data
