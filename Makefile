# From a fresh clone: `make demo` trains, compares and samples; `make test` lints and runs the suite.
PYTHON ?= python3
BIN    := .venv/bin

.PHONY: setup demo test

setup: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[hf,test]'
	@touch $@
