"""What the parts of a run take on this machine's CPU, each beside what it is to be compared with, in turns.

    python bench/parts.py [--rounds=7]

At the shape of bench/throughput.py's LLaMA, in float32: the batch, the loss, the optimizers, what train.py does around
a step that it logs, evaluation, sampling with and without its cache, and the start of train.py. Each line: what, its
milliseconds, those of the other, the median of the ratios and its range.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F

from blockwise import exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.data.writing import write_dataset
from blockwise.loader import Split, micro_seed, train_batch
from blockwise.logger import MetricsFile, console_line
from blockwise.optimizers import build_optimizer
from blockwise.tokenizer import BYTES
from configurator import ArgumentParser
from model import ModelConfig, Transformer
from train import norm_of_gradients, relative_update

LLAMA = ModelConfig(
    "llama", 4096, 256, 4, 4, 4, 128, 512, bias=False, dropout=0.0, rope_theta=10000.0, norm_eps=1e-6, tie_weights=False
)
BATCH = 16


def seconds(function, repeats):
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats


def compare(what, a, b, rounds, repeats=1):
    """Print the times of a and b, and how many times b's a's is the other way round: above 1, a is faster."""
    times = [(seconds(a, repeats), seconds(b, repeats)) for _ in range(rounds + 1)][1:]
    ratios = sorted(tb / ta for ta, tb in times)
    ms = [1000 * median(column) for column in zip(*times, strict=True)]
    spread = f"{median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{what:<58}{ms[0]:>9.2f} ms{ms[1]:>10.2f} ms   {spread}", flush=True)


def plain_generate(model, tokens, n):
    """Greedy sampling that computes the whole context for each token."""
    for _ in range(n):
        logits = model(tokens[:, -model.config.block_size :])[:, -1]
        tokens = torch.cat((tokens, logits.argmax(dim=-1, keepdim=True)), dim=1)


def sampling(context, rounds):
    model = Transformer(replace(LLAMA, block_size=context)).eval()
    prompt, n = torch.zeros(1, 1, dtype=torch.int64), context - 1
    with torch.inference_mode():
        compare(
            f"{context} tokens sampled with the cache; without", lambda: list(model.generate(prompt, n, temperature=0)),
            lambda: plain_generate(model, prompt, n), rounds,
        )  # fmt: skip


def optimizers(model, rounds):
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    one = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    for name in ("adamw", "adam_mini", "lion", "muon", "sgd"):
        groups = param_groups(model, lr=1e-5, weight_decay=0.1)
        step = build_optimizer(name, groups, (0.9, 0.95), LLAMA.head_width).step
        compare(f"{name} with a group per block; fused AdamW with one", step, one.step, rounds, repeats=5)


def loop(model, split, step, rounds):
    """What train.py does around a step whose row it logs."""
    groups = param_groups(model, lr=1e-5)

    def batch():
        train_batch(split, 1337, 0, 0, BATCH, LLAMA.block_size)

    with tempfile.TemporaryDirectory() as folder:
        metrics = MetricsFile(Path(folder) / "metrics.jsonl", 0)

        def around():
            batch()
            torch.manual_seed(micro_seed(1337, 0, 0))
            before = [[p.detach().clone() for p in group["params"]] for group in groups]
            row = {f"grad_norm/{group['block']}": norm_of_gradients(group) for group in groups}
            row |= {f"update_rms/{g['block']}": relative_update(g, old) for g, old in zip(groups, before, strict=True)}
            row |= {"step": 0, "train/loss": 1.0, "lr/Norm": 1.0, "grad_norm": 1.0, "step_ms": 1.0}
            row |= {"tokens_per_s": 1.0, "mfu": None}
            metrics.write(row)
            console_line(row, 1000)

        compare("a batch; forward and backward", batch, step, rounds)
        compare("around a logged step; forward and backward", around, step, rounds)


def start(rounds):
    """train.py --help, and the demo until its second row: imports, the first evaluation and a step."""
    with tempfile.TemporaryDirectory() as folder:
        ids = np.random.default_rng(0).integers(256, size=1_000_000).tolist()
        write_dataset(Path(folder) / "kjv", {"train": ids, "val": ids[:100_000]}, BYTES, "random bytes")
        words = ["--eval_interval=0", "--max_iters=1", f"--data_dir={folder}", f"--out_dir={folder}/out"]
        helps, firsts = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, check=True)
            helps.append(time.perf_counter() - started)
            started = time.perf_counter()
            command = [sys.executable, "-u", "train.py", "config/demo.py", *words]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
                next(line for line in process.stdout if line.startswith("step"))
                firsts.append(time.perf_counter() - started)
                process.stdout.read()  # it is not to find its reader gone
    print(f"train.py --help: {median(helps):.2f} s; the demo's first step and first evaluation: {median(firsts):.2f} s")


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds")

    torch.manual_seed(0)
    model = Transformer(LLAMA)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(LLAMA.vocab_size, size=1_000_000).astype("<u2").tofile(path)
        split = Split(path, 1_000_000, LLAMA.vocab_size, checked=True)
        x, y = train_batch(split, 1337, 0, 0, BATCH, LLAMA.block_size)

        def step():
            model.train()
            model.zero_grad()
            model(x, y).backward()

        @torch.no_grad()
        def evaluation():
            model.eval()
            model(x, y)

        compare("evaluation; forward and backward of as many tokens", evaluation, step, rounds)
        loop(model, split, step, rounds)

    h, matrix = torch.randn(BATCH * LLAMA.block_size, LLAMA.n_embd, requires_grad=True), model.lm_head.weight
    targets = torch.randint(LLAMA.vocab_size, (len(h),))
    model.train()
    compare(
        "the loss and its gradient; torch's linear and cross_entropy",
        lambda: model.loss(h[None], targets[None]).backward(),
        lambda: F.cross_entropy(F.linear(h, matrix), targets).backward(), rounds,
    )  # fmt: skip
    optimizers(model, rounds)
    for context in (256, 512, 1024):
        sampling(context, max(rounds // 3, 1))
    start(max(rounds // 2, 1))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
