"""Speed and memory of whole optimizer steps: ours beside the same model in other hands, eager and compiled.

    python bench/throughput.py --model=llama                      # against Hugging Face's LLaMA
    python bench/throughput.py --model=gpt2 --peer_path=nanoGPT   # against a checkout of nanoGPT, else bench/nano.py
    python bench/throughput.py --all --rounds=7                   # both; fills this machine's table in the document
    python bench/throughput.py --model=llama --largest_batch      # CUDA: the largest batch that fits, side by side
    python bench/throughput.py --eager --rounds=1 --layers=1      # any shape; without the compiled sides

Every side has a process of its own, builds the model, takes three steps that do not count, and then takes turns with
the others: the figure to quote is the median of the ratios, round by round, so that the machine's drift cancels. Peak
memory is that of these processes. Both sides clip gradients and take the AdamW step; in float32 on a CPU, under bf16
autocast on CUDA. The rate of a large matrix product is measured in turns too, torch's own and that of
blockwise/matmul.py; shares are of the larger.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated, Literal

from harness import ROOT, ratios
from peers import PRODUCTS, hugging_face, large_product, nanogpt, ours

from blockwise import UserError, exit_on_user_error
from blockwise.keys import PATH, Keys, Range
from configurator import configure

SHAPE = ("layers", "heads", "width", "block", "vocab", "batch")
SHAPES = {  # by device, of the steps that are compared
    "cpu": {"llama": (4, 4, 128, 256, 4096, 16), "gpt2": (6, 6, 384, 256, 50304, 4)},
    "cuda": {"llama": (8, 16, 1024, 1024, 50304, 8), "gpt2": (12, 12, 768, 1024, 50304, 12)},
}
PEERS = {"llama": "hugging face", "gpt2": "nanogpt"}


FLAGS = MappingProxyType(
    {
        "all": "both models; into docs/performance.json and .md",
        "eager": "without the compiled sides",
        "largest_batch": "CUDA: the largest batch that fits, for each side",
        "compile": "of --side",
    }
)


@dataclass
class ThroughputConfig(Keys):
    """The keys of throughput.py."""

    flags = FLAGS
    model: Annotated[Literal["llama", "gpt2"], "what is trained"] = "llama"
    rounds: Annotated[int, "turns of each side", Range(1)] = 9
    layers: Annotated[int | None, "number of layers (None, here and below: that of the device's table)"] = None
    heads: Annotated[int | None, "attention heads"] = None
    width: Annotated[int | None, "width of the model"] = None
    block: Annotated[int | None, "tokens per sequence"] = None
    vocab: Annotated[int | None, "vocabulary"] = None
    batch: Annotated[int | None, "sequences per step"] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: cuda if there is one"] = "auto"
    threads: Annotated[int | None, "threads of the CPU (None: torch's default)"] = None
    peer_path: Annotated[str | None, "a nanoGPT checkout", PATH] = None
    out: Annotated[str | None, "JSON file of all that was measured", PATH] = None
    side: Annotated[str | None, "one side alone, which steps once for every line that it reads"] = None


# One side, in its own process


def serve(args):
    """Prints what the side is; then, for each line read, one measured time in seconds; at the end, peak MB."""
    started = time.perf_counter()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nanoGPT prints while it is built: what is not an answer goes to stderr
    import torch

    from blockwise.hardware import autocast, peak_memory_mb

    device = args.device
    torch.manual_seed(0)
    flops = None
    if args.side in PRODUCTS:
        step, flops = large_product(args, device)
    else:
        build = {"ours": ours, "hugging face": hugging_face, "nanogpt": nanogpt}[args.side]
        loss_of, update, flops_per_token = build(args, device)
        flops = flops_per_token and flops_per_token * args.batch * args.block
        tokens = torch.randint(args.vocab, (args.batch, args.block + 1), generator=torch.Generator().manual_seed(0))
        x, y = (z.contiguous().to(device) for z in (tokens[:, :-1], tokens[:, 1:]))  # (B, T) each
        precision = autocast(torch.device(device), torch.bfloat16 if device == "cuda" else torch.float32)

        def step():
            with precision:
                loss = loss_of(x, y)
            loss.backward()
            update()
            return loss

    first = step()
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    warm = time.perf_counter() - started
    for _ in range(2):
        step()
    synchronize()
    loss = first.item() if first.dim() == 0 else None
    say(answers, {"first_step_s": warm, "first_loss": loss, "flops": flops, "threads": torch.get_num_threads()})
    for _ in sys.stdin:
        started, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - started < 0.3:
            step()
            synchronize()
            steps += 1
        say(answers, (time.perf_counter() - started) / steps)
    say(answers, peak_memory_mb(torch.device(device)))


def say(answers, value):
    print(json.dumps(value), file=answers, flush=True)


# All sides, in turns


class Side:
    """A process that takes a measured step when asked."""

    def __init__(self, name, args, quiet=False):
        self.name, self.times = name, []
        words = {key: value for key, value in asdict(args).items() if value is not None}
        words |= {"side": name.removesuffix(" compiled")}
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in words.items())]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command + ["--compile"] * name.endswith(" compiled"), text=True, stdin=pipe, stdout=pipe,
            stderr=pipe if quiet else None,
        )  # fmt: skip

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.name}: its process ended")
        return json.loads(line)

    def measure(self):
        print(file=self.process.stdin, flush=True)
        self.times.append(self.answer())

    def close(self):
        self.process.stdin.close()
        peak = self.answer()
        self.process.wait()
        return peak


def names_of(model, flags):
    """Ours and the peer's sides, each eager and compiled."""
    return [f"{side}{mode}" for side in ("ours", PEERS[model]) for mode in ("", " compiled")[: 2 - ("eager" in flags)]]


def compare(args, flags):
    """One shape's sides in turns; returns all that was measured, as a dict."""
    names, sides, facts = names_of(args.model, flags), [], {}
    for name in (*PRODUCTS, *names):  # one after the other, so that the time to the first step is its own
        sides.append(Side(name, args))
        facts[name] = sides[-1].answer()
    for _ in range(args.rounds):
        for side in sides:
            side.measure()
    peaks = {side.name: side.close() for side in sides}
    times = {side.name: side.times for side in sides}
    rates = [max(facts[name]["flops"] / times[name][i] for name in PRODUCTS) for i in range(args.rounds)]
    rows = {
        name: {
            "ms": 1000 * median(times[name]), "tokens_per_s": args.batch * args.block / median(times[name]),
            "share": median(facts["ours"]["flops"] / t / rate for t, rate in zip(times[name], rates, strict=True)),
            "peak_mb": peaks[name], **{key: facts[name][key] for key in ("first_step_s", "first_loss")},
        }
        for name in names
    }  # fmt: skip
    pairs = {}
    for mine in names[: len(names) // 2]:
        for other in names[len(names) // 2 :]:
            spread = dict(zip(("median", "low", "high"), ratios(times[other], times[mine]), strict=True))
            pairs[f"{mine} / {other}"] = {**spread, "memory": peaks[mine] / peaks[other]}
    return {
        "model": args.model, "shape": {key: getattr(args, key) for key in SHAPE}, "rounds": args.rounds,
        "device": args.device, "dtype": "bfloat16" if args.device == "cuda" else "float32",
        "threads": facts["ours"]["threads"], "peer": args.peer_path or PEERS[args.model], "rows": rows, "ratios": pairs,
        "product_gflops": {name: median(facts[name]["flops"] / t for t in times[name]) / 1e9 for name in PRODUCTS},
    }  # fmt: skip


def largest_batch(args, name):
    """The largest batch that takes three steps: doubled until it fails, then bisected."""

    def fits(batch):
        side = Side(name, replace(args, batch=batch), quiet=True)
        side.process.stdin.close()
        return bool(side.process.stdout.readline()) and side.process.wait() == 0

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def machine(device):
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()} with {kind()}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    versions = {"python": platform.python_version(), "torch": torch.__version__, "commit": commit.strip() or None}
    return {"name": name, "cores": os.cpu_count(), **versions}


def kind():
    """The vector instructions of the processor, by which oneDNN's products beat MKL's or not: AVX512, AVX2, ..."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def cpu_name():
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor()


def table(results):
    """What was measured, as lines of Markdown."""
    first = results["comparisons"][0]
    on = results["machine"]
    yield f"{on['name']}, {first['threads']} threads of {on['cores']} cores, {first['dtype']}, torch {on['torch']}, "
    yield f"Python {on['python']}, commit {on['commit']}, {first['rounds']} rounds."
    for result in results["comparisons"]:
        shape = ", ".join(f"{key} {value}" for key, value in result["shape"].items())
        default, rule = (result["product_gflops"][name] for name in PRODUCTS)
        yield f"\n**{result['model']}**: {shape}. A large product: torch's {default:,.0f} GFLOP/s, ours {rule:,.0f}.\n"
        yield "| side | ms a step | tokens/s | share of product rate | peak MB | first step after | first loss |"
        yield "|---|---|---|---|---|---|---|"
        for name, row in result["rows"].items():
            yield (
                f"| {name} | {row['ms']:,.0f} | {row['tokens_per_s']:,.0f} | {100 * row['share']:.0f} % | "
                f"{row['peak_mb']:,.0f} | {row['first_step_s']:.0f} s | {row['first_loss']:.3f} |"
            )
        yield "\n| comparison | as fast, median (range) | peak memory |\n|---|---|---|"
        for name, r in result["ratios"].items():
            yield f"| {name} | {r['median']:.2f}x ({r['low']:.2f} to {r['high']:.2f}) | {r['memory']:.2f}x |"


def into_document(lines, path, key):
    """Put lines between the document's markers for `key`, a machine and its threads; new ones go to the end."""
    begin, end = f"<!-- measured: {key} -->", f"<!-- end: {key} -->"
    text = path.read_text()
    if begin not in text:
        text += f"\n{begin}\n{end}\n"
    before, rest = text.split(begin)
    path.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}")


def main(argv):
    args, _, flags = configure(ThroughputConfig, argv, __doc__)
    args.compile = "compile" in flags
    if args.side:
        return serve(args)

    from blockwise.distributed import auto_device

    device = auto_device(args.device)
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    comparisons = []
    for model in PEERS if "all" in flags else [args.model]:
        shape = dict(zip(SHAPE, SHAPES[device][model], strict=True))
        shape |= {key: getattr(args, key) for key in SHAPE if getattr(args, key) is not None}
        config = replace(args, model=model, device=device, **shape)
        if "largest_batch" in flags:
            for name in names_of(model, flags):
                print(f"{model}: {name} fits a batch of {largest_batch(config, name)}", flush=True)
        else:
            comparisons.append(compare(config, flags))
    if not comparisons:
        return
    results = {"machine": machine(device), "comparisons": comparisons}
    print("\n".join(table(results)))
    key = f"{device}, {comparisons[0]['threads']} threads"
    if "all" in flags:
        path = ROOT / "docs" / "performance.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, key: results}, indent=1) + "\n")
        into_document(table(results), ROOT / "docs" / "performance.md", key)
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
