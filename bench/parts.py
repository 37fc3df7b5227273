"""What the parts of a run take on this machine's CPU, each beside what it is to be compared with, in turns.

    python bench/parts.py [--rounds=7]
    python bench/parts.py --tiny               # a test of this script; its times mean nothing

At the shape of bench/throughput.py's LLaMA, in float32: the batch, the loss, the optimizers, what train.py does around
a step that it logs, evaluation, sampling with and without its cache, and the start of train.py. Each line: what, its
milliseconds, those of the other, the median of the ratios and its range.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated

import torch
import torch.nn.functional as F
from harness import ROOT, in_turns, model_config, times_as_fast, write_text

from blockwise import exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.keys import Keys, Range
from blockwise.loader import Dataset, micro_seed, train_batch
from blockwise.logger import MetricsFile, console_line
from blockwise.optimizers import build_optimizer
from blockwise.training.block_stats import BlockStats
from configurator import configure
from model import Transformer

TINY = ("--n_layer=1", "--n_embd=16", "--n_head=2", "--block_size=16", "--batch_size=2", "--eval_iters=1")


@dataclass
class PartsConfig(Keys):
    """The keys of parts.py."""

    flags = MappingProxyType({"tiny": "the smallest form, whose times mean nothing"})

    rounds: Annotated[int, "turns of each comparison", Range(1)] = 7


def compare(what, ours, other, rounds, repeats=1):
    """Print the times of two functions, and how many times as fast the first one is."""
    times = in_turns({"ours": ours, "other": other}, rounds, repeats)
    a, b = (1000 * median(times[name]) for name in ("ours", "other"))
    print(f"{what:<60}{a:>9.2f} ms{b:>10.2f} ms   {times_as_fast(times['ours'], times['other'])}", flush=True)


def sampling(shape, context, rounds):
    model = Transformer(replace(shape, block_size=context)).eval()
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    def without_cache():
        tokens = prompt
        while tokens.size(1) < context:
            tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)

    with torch.inference_mode():
        cached = lambda: list(model.generate(prompt, context - 1, temperature=0))  # noqa: E731
        compare(f"{context} tokens sampled with the cache; without", cached, without_cache, rounds)


def optimizers(model, rounds):
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    plain = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    for name in ("adamw", "adam_mini", "lion", "muon", "sgd"):
        groups = param_groups(model, lr=1e-5, weight_decay=0.1)
        step = build_optimizer(name, groups, (0.9, 0.95), model.config.head_width).step
        compare(f"{name} with a group per block; fused AdamW with one", step, plain.step, rounds, repeats=5)


def start(folder, rounds, small):
    """train.py --help, and config/kjv_bytes.py until its second row: imports, the first evaluation and a step."""
    words = ["--eval_interval=0", "--max_iters=1", "--dataset=made_up", f"--data_dir={folder}", *small]
    helps, firsts = [], []
    for number in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, check=True)
        helps.append(time.perf_counter() - started)
        started = time.perf_counter()
        command = [sys.executable, "-u", "train.py", "config/kjv_bytes.py", *words, f"--out_dir={folder}/out{number}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            next(line for line in process.stdout if line.startswith("step"))
            firsts.append(time.perf_counter() - started)
            process.stdout.read()  # or its next line would find no reader
    print(f"train.py --help: {median(helps):.2f} s; the first step and evaluation: {median(firsts):.2f} s")


def measure(config, tiny, folder):
    rounds = config.rounds
    shape = model_config("llama", 256, 16, 1, 2, 16) if tiny else model_config("llama")
    batch_size = 2 if tiny else 16
    torch.manual_seed(0)
    model = Transformer(shape)
    groups = param_groups(model, lr=1e-5)
    optimizer = torch.optim.AdamW(groups)
    data = Dataset.open(folder, "made_up", shape.block_size)
    metrics = MetricsFile(folder / "metrics.jsonl", 0)
    batch = partial(train_batch, data.train, 1337, 0, 0, batch_size, shape.block_size)
    x, y = batch()

    def step():
        model.train()
        model.zero_grad()
        model(x, y).backward()

    @torch.no_grad()
    def evaluation():
        model.eval()
        model(x, y)

    def around():
        batch()
        torch.manual_seed(micro_seed(1337, 0, 0))
        row = BlockStats(optimizer, model).row(updated=True)
        row |= {"step": 0, "train/loss": 1.0, "grad_norm": 1.0, "step_ms": 1.0, "tokens_per_s": 1.0, "mfu": None}
        metrics.write(row)
        console_line(row, 1000)

    compare("evaluation; forward and backward of as many tokens", evaluation, step, rounds)
    compare("a batch; forward and backward", batch, step, rounds)
    compare("around a logged step; forward and backward", around, step, rounds)

    h, matrix = torch.randn(x.numel(), shape.n_embd, requires_grad=True), model.lm_head.weight
    targets = torch.randint(shape.vocab_size, (len(h),))
    model.train()
    compare(
        "the loss and its gradient; torch's linear and cross_entropy",
        lambda: model.loss(h[None], targets[None]).backward(),
        lambda: F.cross_entropy(F.linear(h, matrix), targets).backward(), rounds,
    )  # fmt: skip
    optimizers(model, rounds)
    for context in (8,) if tiny else (256, 512, 1024):
        sampling(shape, context, max(rounds // 3, 1))
    start(folder, max(rounds // 2, 1), TINY if tiny else ())


def main(argv):
    config, _, flags = configure(PartsConfig, argv, __doc__)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {config.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        write_text(folder)
        measure(config, "tiny" in flags, Path(folder))


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
