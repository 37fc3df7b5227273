"""Speed and memory of whole optimizer steps: ours beside the same model in other hands, eager and compiled.

    python bench/throughput.py --model=llama                      # against Hugging Face's LLaMA
    python bench/throughput.py --model=gpt2 --peer_path=nanoGPT   # against a checkout of nanoGPT, else bench/nano.py
    python bench/throughput.py --all --rounds=7                   # both
    python bench/throughput.py --eager --rounds=1 --shape=1,4,128,256,4096,16        # without the compiled sides

Every side has a process of its own, builds the model, takes three steps that do not count, and then takes turns with
the others: the figure to quote is the median of the ratios, round by round, so that the machine's drift cancels. Peak
memory is that of these processes. Both sides clip gradients and take the AdamW step; in float32 on a CPU, under bf16
autocast on CUDA. The rate of a large matrix product is measured in turns too, torch's own and that of
blockwise/matmul.py; shares are of the larger. Prints Markdown.
"""

import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated, Literal

from harness import ROOT, ratios
from sides import PEERS, PRODUCTS, SHAPES, Shape, Side

from blockwise import UserError, exit_on_user_error
from blockwise.keys import PATH, Keys, Range
from configurator import configure


@dataclass
class ThroughputConfig(Keys):
    """The keys of throughput.py."""

    flags = MappingProxyType({"all": "both models", "eager": "without the compiled sides"})
    model: Annotated[Literal["llama", "gpt2"], "what is trained"] = "llama"
    rounds: Annotated[int, "turns of each side", Range(1)] = 9
    shape: Annotated[
        list[int], "layers, heads, width, tokens per sequence, vocabulary, sequences (empty: the device's)", Range(1)
    ] = field(default_factory=list)
    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: cuda if there is one"] = "auto"
    threads: Annotated[int | None, "threads of the CPU (None: torch's default)"] = None
    peer_path: Annotated[str | None, "a nanoGPT checkout", PATH] = None

    def __post_init__(self):
        super().__post_init__()
        if len(self.shape) not in (0, 6):
            raise UserError(f"shape={','.join(map(str, self.shape))}: expected six numbers")


def compare(shape, device, config, flags):
    """Measure one shape's sides in turns; returns what the machine gave them, and the lines of Markdown."""
    modes = ("",) if "eager" in flags else ("", " compiled")
    mine, others = ([f"{side}{mode}" for mode in modes] for side in ("ours", PEERS[shape.model]))
    sides, facts = {}, {}
    for name in (*PRODUCTS, *mine, *others):  # one after the other, so that the time to the first step is its own
        sides[name] = Side(name, shape, device, config.peer_path)
        facts[name] = sides[name].answer()
    for _ in range(config.rounds):
        for side in sides.values():
            side.measure()
    peaks = {name: side.close() for name, side in sides.items()}
    rates = [max(facts[name]["flops"] / sides[name].times[i] for name in PRODUCTS) for i in range(config.rounds)]
    default, rule = (facts[name]["flops"] / sides[name].seconds / 1e9 for name in PRODUCTS)
    lines = [
        f"\n**{shape.model}**: {', '.join(f'{key} {value}' for key, value in list(asdict(shape).items())[1:])}. "
        f"A large product: torch's {default:,.0f} GFLOP/s, ours {rule:,.0f}.\n",
        "| side | ms a step | tokens/s | share of product rate | peak MB | first step after | first loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*mine, *others):
        side, fact = sides[name], facts[name]
        share = median(facts["ours"]["flops"] / t / rate for t, rate in zip(side.times, rates, strict=True))
        lines.append(
            f"| {name} | {1000 * side.seconds:,.0f} | {shape.batch * shape.block / side.seconds:,.0f} | "
            f"{100 * share:.0f} % | {peaks[name]:,.0f} | {fact['first_step_s']:.0f} s | {fact['first_loss']:.3f} |"
        )
    lines += ["\n| comparison | as fast, median (range) | peak memory |", "|---|---|---|"]
    for a, b in ((a, b) for a in mine for b in others):
        middle, low, high = ratios(sides[b].times, sides[a].times)
        lines.append(f"| {a} / {b} | {middle:.2f}x ({low:.2f} to {high:.2f}) | {peaks[a] / peaks[b]:.2f}x |")
    return facts["ours"]["threads"], lines


def machine_line(device, threads, rounds):
    """What the numbers are of, in a sentence."""
    import torch

    # The vector instructions decide whether oneDNN's products beat MKL's: AVX512, AVX2, ...
    vectors = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()} with {vectors}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    dtype = "bfloat16" if device == "cuda" else "float32"
    return (
        f"{name}, {threads} threads of {os.cpu_count()} cores, {dtype}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, commit {commit.strip() or None}, {rounds} rounds."
    )


def cpu_name():
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor()


def main(argv):
    config, _, flags = configure(ThroughputConfig, argv, __doc__)
    from blockwise.distributed import auto_device

    device = auto_device(config.device)
    if config.threads:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
    for model in PEERS if "all" in flags else [config.model]:
        shape = Shape(model, *(config.shape or SHAPES[device][model]))
        threads, lines = compare(shape, device, config, flags)
        print("\n".join([machine_line(device, threads, config.rounds), *lines]), flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
