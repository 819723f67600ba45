# Two commands for a newcomer: `make demo` and `make test`. Both create .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.PHONY: demo test lint bench venv clean

demo: $(STAMP)  ## eight speakers of one dialect adapt real Whisper-tiny.en
	$(BIN)/zo-asr-sim demo

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

lint: $(STAMP)  ## style, types, and that the README shows the committed numbers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.readme --check

bench: $(STAMP)  ## the demo over three seeds; rows go to benchmarks/results
	$(BIN)/python -m benchmarks.dialect --seeds 0 1 2

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) models data
