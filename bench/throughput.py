"""Tokens per second of a whole optimizer step: our LLaMA against Hugging Face's with torch.optim.AdamW, eager.

    python bench/throughput.py [--rounds=9] [--layers=4 --heads=4 --width=128 --block=256 --vocab=4096 --batch=16]

Both sides see the same shape and tokens, in float32 on the CPU. They take turns, and the figure to quote is the
median of the ratios, round by round: the machine's own drift cancels. Peak memory is that of a fresh process each.
Also measured: the optimizer step with groups against one group, what train.py does around a step that it logs, and
the rate as a share of a large matrix product's.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blockwise import exit_on_user_error
from configurator import ArgumentParser


def our_step(args):
    """Returns a function that takes one step of ours, and its model."""
    import torch

    from blockwise.blocks import param_groups
    from model import ModelConfig, Transformer

    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(
            "llama", args.vocab, args.block, args.layers, args.heads, args.heads, args.width, 4 * args.width,
            bias=False, dropout=0.0, rope_theta=10000.0, norm_eps=1e-6, tie_weights=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-5, weight_decay=0.1), betas=(0.9, 0.95), fused=True)
    x, y = tokens(args)

    def step():
        model(x, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, model


def peer_step(args):
    """The same of Hugging Face's model, with its own loss and torch's AdamW as it comes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocab, hidden_size=args.width, intermediate_size=4 * args.width, use_cache=False,
            num_hidden_layers=args.layers, num_attention_heads=args.heads, max_position_embeddings=args.block,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1)
    x, _ = tokens(args)

    def step():
        model(input_ids=x, labels=x).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, model


SIDES = {"ours": our_step, "hugging face": peer_step}


def tokens(args):
    import torch

    chunk = torch.randint(args.vocab, (args.batch, args.block + 1), generator=torch.Generator().manual_seed(0))
    return chunk[:, :-1].contiguous(), chunk[:, 1:].contiguous()  # (B, T) each


def seconds(function, repeats=1):
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats


def in_turns(a, b, rounds, repeats=1):
    """Median seconds of each and the median of b / a, in alternation after two rounds that do not count."""
    times = [(seconds(a, repeats), seconds(b, repeats)) for _ in range(rounds + 2)][2:]
    ratios = sorted(tb / ta for ta, tb in times)
    return median(ta for ta, _ in times), median(tb for _, tb in times), median(ratios), ratios[0], ratios[-1]


def product_rate():
    """Floating-point operations per second of a large float32 matrix product."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(8))


def report_memory(args):
    import torch

    from blockwise.hardware import peak_memory_mb

    step, _ = SIDES[args.memory](args)
    for _ in range(3):
        step()
    print(peak_memory_mb(torch.device("cpu")))


def optimizer_cost(model, rounds):
    """Seconds of one AdamW step with a group per block type, with one group, and the ratio."""
    import torch

    from blockwise.blocks import param_groups

    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    groups = torch.optim.AdamW(param_groups(model, lr=1e-5, weight_decay=0.1), fused=True)
    one = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    return in_turns(one.step, groups.step, 5 * rounds, repeats=20)[:3]


def loop_overhead(args, model, rounds):
    """Seconds that train.py spends around a step whose row it logs: batch, seed, block norms, relative updates, row."""
    import numpy as np
    import torch

    from blockwise.blocks import param_groups
    from blockwise.loader import Split, micro_seed, train_batch
    from blockwise.logger import MetricsFile, console_line
    from train import norm_of_gradients, relative_update

    groups = param_groups(model, lr=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(args.vocab, size=1_000_000).astype("<u2").tofile(path)
        split = Split(path, 1_000_000, args.vocab, checked=True)
        metrics = MetricsFile(Path(folder) / "metrics.jsonl", 0)

        def around_a_step():
            train_batch(split, 1337, 0, 0, args.batch, args.block)
            torch.manual_seed(micro_seed(1337, 0, 0))
            before = [[p.detach().clone() for p in group["params"]] for group in groups]
            row = {f"grad_norm/{group['block']}": norm_of_gradients(group) for group in groups}
            row |= {f"update_rms/{g['block']}": relative_update(g, old) for g, old in zip(groups, before, strict=True)}
            row |= {"step": 0, "train/loss": 1.0, "lr/Norm": 1.0, "grad_norm": 1.0, "step_ms": 1.0}
            row |= {"tokens_per_s": 1.0, "mfu": None}
            metrics.write(row)
            console_line(row, 1000)

        return median(seconds(around_a_step, repeats=5) for _ in range(rounds))


def main():
    parser = ArgumentParser(description=__doc__)
    defaults = {"rounds": 9, "layers": 4, "heads": 4, "width": 128, "block": 256, "vocab": 4096, "batch": 16}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", choices=SIDES, help="print one side's peak memory in MB and exit")
    args = parser.parse_args()
    if args.memory:
        return report_memory(args)

    import torch

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {vars(args)}")
    (ours, model), (peer, _) = our_step(args), peer_step(args)
    a, b, ratio, low, high = in_turns(ours, peer, args.rounds)
    size = args.batch * args.block
    print(f"{'':<14}{'ms a step':>10}{'tokens/s':>10}{'peak MB':>9}")
    for name, took in (("ours", a), ("hugging face", b)):
        words = [f"--{k}={v}" for k, v in vars(args).items() if k != "memory"]
        memory = subprocess.run(
            [sys.executable, __file__, *words, f"--memory={name}"], capture_output=True, text=True, check=True
        ).stdout
        print(f"{name:<14}{1000 * took:>10.0f}{size / took:>10,.0f}{float(memory):>9.0f}")
    print(f"ours is {ratio:.2f}x as fast (median of {args.rounds} rounds, {low:.2f} to {high:.2f})")
    share = model.flops_per_token() * size / a / product_rate()
    print(f"ours runs at {100 * share:.0f} % of a large matrix product's rate")
    one, groups, ratio = optimizer_cost(model, args.rounds)
    print(f"AdamW step: {1000 * groups:.2f} ms with groups, {1000 * one:.2f} ms with one: {ratio:.3f}x")
    around = loop_overhead(args, model, args.rounds)
    print(f"train.py around a logged step: {1000 * around:.1f} ms, {100 * around / a:.1f} % of the step")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
