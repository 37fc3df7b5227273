"""What the parts of a run take on this machine's CPU, each beside what it is to be compared with, in turns.

    python bench/parts.py [--rounds=7]
    python bench/parts.py --tiny               # a test of this script; its times mean nothing

At the shape of bench/throughput.py's LLaMA, in float32: the batch, the loss, the optimizers, what train.py does around
a step that it logs, evaluation, curvature, and sampling with and without its cache. Each line: what, its milliseconds,
those of the other, the median of the ratios and its range.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated

import torch
import torch.nn.functional as F
from harness import in_turns, model_config, times_as_fast, write_text

from blockwise import exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.curvature.hessian import HessianVectorProduct
from blockwise.distributed import World
from blockwise.keys import Keys, Range
from blockwise.loader import Dataset, micro_seed, train_batch
from blockwise.logger import MetricsFile, console_line
from blockwise.optimizers import build_optimizer
from blockwise.settings import TrainConfig
from blockwise.training import LiveCurvature
from blockwise.training.block_stats import BlockStats
from configurator import configure
from model import Transformer

BETAS = (0.9, 0.95)


@dataclass
class PartsConfig(Keys):
    """The keys of parts.py."""

    flags = MappingProxyType({"tiny": "the smallest form, whose times mean nothing"})
    rounds: Annotated[int, "turns of each comparison", Range(1)] = 7


def compare(rounds, what, ours, other, repeats=1):
    """Print the times of two functions, and how many times as fast the first one is."""
    times = in_turns({"ours": ours, "other": other}, rounds, repeats)
    a, b = (1000 * median(times[name]) for name in ("ours", "other"))
    print(f"{what:<60}{a:>9.2f} ms{b:>10.2f} ms   {times_as_fast(times['ours'], times['other'])}", flush=True)


def steps(compare, model, data, batch_size, folder):
    """The parts of a step and of an evaluation."""
    shape, optimizer = model.config, torch.optim.AdamW(param_groups(model, lr=1e-5))
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

    compare("evaluation; forward and backward of as many tokens", evaluation, step)
    compare("a batch; forward and backward", batch, step)
    compare("around a logged step; forward and backward", around, step)
    h, matrix = torch.randn(x.numel(), shape.n_embd, requires_grad=True), model.lm_head.weight
    targets = torch.randint(shape.vocab_size, (len(h),))
    compare(
        "the loss and its gradient; torch's linear and cross_entropy",
        lambda: model.loss(h[None], targets[None]).backward(),
        lambda: F.cross_entropy(F.linear(h, matrix), targets).backward(),
    )
    curvature(compare, model, data, len(x), step)


def curvature(compare, model, data, sequences, step):
    """A Hessian-vector product, and a measurement as train.py makes it, on an eighth of a step's tokens."""
    config = TrainConfig(
        curvature_interval=1, curvature_batch_size=max(1, sequences // 8), batch_size=sequences, beta1=BETAS[0],
        block_size=model.config.block_size,
    )  # fmt: skip
    live = LiveCurvature(config, model, data.train, World(0, 1, torch.device("cpu")), None)
    batch, params = live.batch, list(model.parameters())
    optimizer = build_optimizer("adamw", param_groups(model, lr=1e-5), BETAS)
    step()
    optimizer.step()
    products = HessianVectorProduct(model, batch, params)
    v = torch.randn(products.size)
    measure = lambda: live.measure(0, optimizer)  # noqa: E731
    gradient = lambda: torch.autograd.grad(model(batch.x, batch.y), params)  # noqa: E731
    compare("a Hessian-vector product; the gradient on its tokens", lambda: products(v), gradient)
    compare("a measurement of five products; forward and backward", measure, step)


def optimizers(compare, model):
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    plain = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    for name in ("adamw", "adam_mini", "lion", "muon", "sgd"):
        groups = param_groups(model, lr=1e-5, weight_decay=0.1)
        step = build_optimizer(name, groups, BETAS, model.config.head_width).step
        compare(f"{name} with a group per block; fused AdamW with one", step, plain.step, repeats=5)


def sampling(compare, shape, context):
    model = Transformer(replace(shape, block_size=context)).eval()
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    def without_cache():
        tokens = prompt
        while tokens.size(1) < context:
            tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)), dim=1)

    with torch.inference_mode():
        cached = lambda: list(model.generate(prompt, context - 1, temperature=0))  # noqa: E731
        compare(f"{context} tokens sampled with the cache; without", cached, without_cache)


def main(argv):
    config, _, flags = configure(PartsConfig, argv, __doc__)
    tiny = "tiny" in flags
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {config.rounds} rounds")
    torch.manual_seed(0)
    shape = model_config("llama", 256, 16, 1, 2, 16) if tiny else model_config("llama")
    model = Transformer(shape)
    with tempfile.TemporaryDirectory() as folder:
        write_text(folder)
        data = Dataset.open(Path(folder), "made_up", shape.block_size)
        steps(partial(compare, config.rounds), model, data, 2 if tiny else 16, Path(folder))
    optimizers(partial(compare, config.rounds), model)
    for context in (8,) if tiny else (256, 512, 1024):
        sampling(partial(compare, max(config.rounds // 3, 1)), shape, context)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
