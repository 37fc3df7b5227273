# From a fresh clone: `make demo` trains, compares and samples; `make study` judges fairly, in an hour; `make test` lints
# and runs the suite, `make test-slow` what takes long.
PYTHON ?= python3
BIN    := .venv/bin
# One process per GPU, two on a CPU. Not the torchrun command: its first line holds a path, which may be too long.
LAUNCH  = $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node=$$($(BIN)/python -c "import torch; print(torch.cuda.device_count() or 2)")

.PHONY: setup demo study test test-slow

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: setup
	$(BIN)/python data/kjv/prepare.py
	$(LAUNCH) train.py config/demo.py
	$(LAUNCH) train.py config/demo.py config/demo_adamw.py
	$(BIN)/python plot.py curves out/demo/blockwise out/demo/adamw --out=out/demo/curves.png
	$(BIN)/python sample.py --out_dir=out/demo/blockwise --start="In the beginning" --num_samples=1 --temperature=0.6

study: setup
	$(BIN)/python data/kjv/prepare.py
	$(BIN)/python data/kjv/prepare.py --tokenizer=bpe:4096
	$(BIN)/python compare.py config/study_cpu.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist=worksteal --durations=15

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --slow -m slow --durations=0
