# From a fresh clone: `make demo` trains, compares and samples; `make study` judges fairly, in an hour; `make test` lints
# and runs the suite, `make test-slow` what takes long.
PYTHON ?= python3
BIN    := .venv/bin
# A process per GPU, two on a CPU, but no more than the demo's step has parts. Not the torchrun command: its first line
# holds a path, which may be too long.
LAUNCH  = $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node=$$($(BIN)/python -c "import torch; print(min(torch.cuda.device_count() or 2, 2))")

.PHONY: setup demo study test test-slow

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: setup
	@echo "1/5  tokenizing the King James Bible"
	@$(BIN)/python data/kjv/prepare.py --tokenizer=bpe:1024
	@echo "2/5  training a small LLaMA for 420 steps at the paper's rates per block type, a minute on two cores"
	@$(LAUNCH) train.py config/demo.py
	@echo "3/5  the same by AdamW with one rate for all blocks"
	@$(LAUNCH) train.py config/demo.py config/demo_adamw.py
	@echo "4/5  a text by the first model"
	@$(BIN)/python sample.py --out_dir=out/demo/blockwise --start="In the beginning" --num_samples=1 --max_new_tokens=60
	@echo "5/5  the curves, out/demo/curves.png"
	@$(BIN)/python plot.py curves out/demo/blockwise out/demo/adamw --out=out/demo/curves.png > out/demo/seen.txt
	@printf "\nSeen:     " && grep "after" out/demo/seen.txt
	@echo "Found:    the lead shrinks as training goes on, to 0.04 at 20 tokens a parameter: docs/studies/README.md"
	@echo "Try next: $(BIN)/python -m blockwise.blocks MODEL_ID_OR_DIR, the split of a model of yours"

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
