"""The phase correct: the device's numbers against the CPU's, exact repetition, mistakes in one line.

The CPU's numbers are made beside the device's, by the same commands: stored ones would hold the rounding of the
processor that made them.
"""

import importlib.util
import math
from functools import partial

from same_rows import difference_of

from accept.report import Skip, at_most, between, equal
from accept.runs import FULL_FLOAT32, REFERENCE, Batch, Job, launch, run_one

VARIANTS = {  # each key set so that it acts on new weights
    "gpt2": "--bias=True",
    "llama": "--model_type=llama",
    "grouped": "--model_type=llama --n_kv_head=1",
    "tied": "--model_type=llama --tie_weights=True --min_lr_scaled=True",
    "qk_norm": "--model_type=llama --qk_norm=True --init_std=0.05",
    "softcap": "--logit_softcap=0.2 --z_loss=1e-2 --tie_weights=False",
    "qk_clip": "--model_type=llama --qk_clip=0.05 --activation_checkpointing=True --ema_decay=0.9",
    "documents": "--dataset=documents --doc_mask=True",
}
# By optimizer the bound on its losses: Lion makes a whole step of a last bit's sign, Muon computes in bfloat16
OPTIMIZERS = {"adamw": 1e-4, "adam_mini": 1e-4, "sgd": 1e-4, "lion": 1e-3, "muon": 3e-3}
LLAMA = ("--model_type=llama",)
CURVATURE = (*LLAMA, "--curvature_interval=3", "--sharpness_interval=3", "--curvature_batch_size=4")
GROWING = (*LLAMA, "--arch_warmup=True", "--arch_warmup_groups=1", "--n_layer=4")
TEXT = (*LLAMA, "--learning_rate=1e-3")
FULL_MEMORY = """
import model, torch
def full(*inputs):
    raise torch.OutOfMemoryError("made up")
model.Transformer.loss = full
"""
LONG = ("--block_size=1024", "--batch_size=4")
PROMPT = ("--start=the cat ", "--num_samples=1", "--max_new_tokens=60", "--temperature=0", "--dtype=float32")
FAST = ("--num_samples=1", "--max_new_tokens=240", "--dtype=bfloat16")


def checks(report, place):
    common = place.common(10)
    jobs = {name: Job((*common, *keys.split())) for name, keys in VARIANTS.items()}
    for name in OPTIMIZERS:
        rate = ["--learning_rate=1e-2"] if name == "sgd" else []
        jobs[name] = Job((*place.common(20), f"--optimizer={name}", *rate))
    jobs["curvature"] = Job((*common, *CURVATURE))
    text = Job((*place.common(100 if place.tiny else 200), *TEXT), out="text")
    reference = Batch(place, "cpu", on("cpu", jobs | {"text": text}), env=REFERENCE)
    batches = (
        Batch(place, "device", on(place.device, jobs | low_precision(place)), before=FULL_FLOAT32),
        Batch(place, "compiled", on(place.device, compiled(place)), before=FULL_FLOAT32),
        Batch(place, "exact", on(place.device, repeated(place))),
    )  # beside one another: they are small, and compiling takes the CPU's time
    reference = reference.wait()
    runs = {name: run for batch in batches for name, run in batch.wait().items()}
    for section in (float32_checks, precision_checks, compile_checks, exact_checks):
        report.section(f"correct/{section.__name__}", section, reference, runs)
    for section in (mistake_checks, text_checks, process_checks):
        report.section(f"correct/{section.__name__}", section, place, runs)


def on(device, jobs):
    return {name: Job((*job.words, f"--device={device}"), job.script, job.out) for name, job in jobs.items()}


def low_precision(place):
    """Runs in bfloat16 and float16; the last one's objective is steep enough to overflow float16's first scales.

    Two with documents, whose attention has no T x T matrices in memory, with grouped queries as without.
    """
    documents = (*place.common(4), *LLAMA, "--dataset=documents", "--doc_mask=True", "--dtype=bfloat16", *LONG)
    return {
        "documents_whole": Job(documents),
        "documents_grouped": Job((*documents, "--n_kv_head=1")),
        "bfloat16": Job((*place.common(10), *LLAMA, "--dtype=bfloat16")),
        "bfloat16_softcap": Job((*place.common(10), *VARIANTS["softcap"].split(), "--dtype=bfloat16")),
        "float16": Job((*place.common(10), *LLAMA, "--dtype=float16")),
        "overflow": Job((*place.common(30), *LLAMA, "--dtype=float16", "--z_loss=300")),
    }


def compiled(place):
    """Runs that are compiled, and what one of them is compared with; the others have a variant's keys."""
    growth = (*place.common(9), *GROWING, "--arch_warmup_interval=3")
    return {
        "growing": Job(growth),
        "compiled_gpt2": Job((*place.common(10), *VARIANTS["gpt2"].split(), "--compile=True")),
        "compiled_llama": Job((*place.common(10), *LLAMA, "--compile=True")),
        "compiled_growing": Job((*growth, "--compile=True")),
    }


def gap(run, reference, keys=("train/loss", "val/loss"), relative=False):
    """The largest difference of any of these keys in any row; infinite where one is not a number."""
    largest = 0.0
    for key in keys:
        values, expected = run.column(key), reference.column(key)
        if values.keys() != expected.keys() or not values:
            raise RuntimeError(f"{key} is logged in steps {sorted(values)} and {sorted(expected)}")
        for step, value in expected.items():
            difference = abs(values[step] - value) / (abs(value) if relative else 1)
            largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


def norm_gap(run, reference):
    """The largest relative difference of a gradient norm, of the whole or of a block."""
    keys = {key for row in reference.rows.values() for key in row if key.startswith("grad_norm")}
    return gap(run, reference, sorted(keys), relative=True)


def float32_checks(report, reference, runs):
    for name in VARIANTS:
        report.check(f"correct/float32/{name}/loss", at_most(1e-4), partial(gap, runs[name], reference[name]))
        report.check(f"correct/float32/{name}/norms", at_most(1e-3), partial(norm_gap, runs[name], reference[name]))
    for name, limit in OPTIMIZERS.items():
        report.check(f"correct/optimizer/{name}/loss", at_most(limit), partial(gap, runs[name], reference[name]))
    pair = runs["curvature"], reference["curvature"]
    report.check("correct/curvature", at_most(1e-3), partial(gap, *pair, ["curvature/lambda_max"], relative=True))
    blocks = [f"sharpness/{block}" for block in ("Emb", "QK", "VO", "FFN", "Norm", "Head")]
    report.check("correct/sharpness", at_most(1e-2), partial(gap, *pair, blocks, relative=True))


def precision_checks(report, reference, runs):
    for name, like in {"bfloat16": "llama", "bfloat16_softcap": "softcap", "float16": "llama"}.items():
        report.check(f"correct/{name}/loss", at_most(3e-2), partial(gap, runs[name], reference[like]))

    def memory(name):
        return max(runs[name].column("mem_mb").values())

    grouped = lambda: memory("documents_grouped") / memory("documents_whole")  # noqa: E731
    report.check("correct/documents/grouped_memory", at_most(1.1), grouped)
    norms = partial(runs["overflow"].column, "grad_norm")
    updates = partial(runs["overflow"].column, "update_rms/FFN")
    overflows = lambda: sum(not math.isfinite(norm) for norm in norms().values())  # noqa: E731
    report.check("correct/overflow/steps", between(1, 19), overflows)
    report.check("correct/overflow/last_norm", between(1e-6, 1e6), lambda: norms()[29])
    last_updates = lambda: sum(updates()[step] > 0 for step in range(20, 30))  # noqa: E731
    report.check("correct/overflow/updates_of_the_last_10", equal(10), last_updates)


def compile_checks(report, reference, runs):
    for name in ("gpt2", "llama", "growing"):
        run, eager = runs[f"compiled_{name}"], runs[name]
        report.check(f"correct/compiled/{name}/loss", at_most(1e-3), partial(gap, run, eager))
        most = 4 if name == "growing" else 2  # block by block: a block and the loss, in training and in evaluation
        report.check(f"correct/compiled/{name}/graphs", equal(most), lambda run=run: run.done.result["graphs"])
        report.check(f"correct/compiled/{name}/breaks", equal(0), lambda run=run: run.done.result["breaks"])


def repeated(place):
    """Runs with dropout, eager and compiled: one, the same again, and one that stops after 5 steps and resumes."""
    keys = (*place.common(10), *VARIANTS["grouped"].split(), "--dropout=0.1", "--deterministic=True")
    jobs = {}
    for mode, compile_ in {"eager": False, "compiled": True}.items():
        words = (*keys, f"--dtype={'bfloat16' if place.cuda else 'float32'}", f"--compile={compile_}")
        jobs |= {f"{mode}_{name}": Job(words) for name in ("once", "again")}
        jobs[f"{mode}_half"] = Job((*words, "--max_iters=5"), out=f"{mode}_resumed")
        jobs[f"{mode}_resumed"] = Job((*words, "--init_from=resume"), out=f"{mode}_resumed")
    return jobs


def exact_checks(report, reference, runs):
    def compare(once, other):
        if difference := difference_of(*(list(run.rows.values()) for run in (once, other))):
            raise RuntimeError(difference)
        return "bitwise"

    for mode in ("eager", "compiled"):
        for other in ("again", "resumed"):
            measure = partial(compare, runs[f"{mode}_once"], runs[f"{mode}_{other}"])
            report.check(f"correct/deterministic/{mode}/{other}", equal("bitwise"), measure)


def mistake_checks(report, place, _):
    """A loss that is not finite, and want of memory."""
    explode = (*place.common(20), *LLAMA, "--learning_rate=1e30", "--grad_clip=0", f"--device={place.device}")
    not_finite = {"nan_stop": Job(explode), "nan_skip": Job((*explode, "--nan_policy=skip"))}
    huge = ("--n_layer=12", "--n_head=12", "--n_embd=768", "--block_size=1024", "--batch_size=2048")
    words = (*place.common(2), *(() if place.tiny else huge), f"--device={place.device}")
    full = {"memory_eager": Job(words), "memory_compiled": Job((*words, "--compile=True"))}
    runs = Batch(place, "memory", full, before=FULL_MEMORY if place.tiny else "").wait()
    runs |= Batch(place, "not_finite", not_finite).wait()  # not beside what takes all of the memory
    for name, run in runs.items():
        status = 3 if name in not_finite else 2
        report.check(f"correct/{name}/status", equal(status), lambda run=run: run.result["status"])
        if name in not_finite:
            report.check(f"correct/{name}/lines", equal(1), partial(run.lines, "stopped before taking this step"))
        else:
            report.check(f"correct/{name}/names_batch_size", equal(True), lambda run=run: "batch_size" in run.error)


def text_checks(report, place, _):
    """What a checkpoint of the CPU's says on the device, and in Hugging Face's hands."""
    out, to = place.scratch / "out" / "text", place.scratch / "exported"
    sample = {"sample": Job((f"--out_dir={out}", *PROMPT), "sample.py")}
    fast = {"fast": Job((f"--out_dir={out}", *FAST, f"--device={place.device}"), "sample.py")}
    export = {"export": Job((f"--out_dir={out}", f"--to={to}"), "export.py")}
    reference = Batch(place, "cpu_text", on("cpu", sample) | export, env=REFERENCE)
    device = Batch(place, "device_text", on(place.device, sample) | fast)
    reference, device = reference.wait(), device.wait()

    def same_text():
        texts = [runs["sample"].done.text("stdout") for runs in (reference, device)]
        return texts[0] == texts[1] and len(texts[0]) > 60

    def export_gap():
        for name in ("transformers", "safetensors"):
            if not importlib.util.find_spec(name):
                raise Skip(f"{name} is not installed")
        return largest_logit_gap(reference["export"].done and to, out, place.device)

    report.check("correct/sample/text_of_the_cpu", equal(True), same_text)
    # A plan of cuDNN's attention for each length alone would take 5 s
    report.check("correct/sample/seconds_of_240_tokens", at_most(5), lambda: device["fast"].done.result["seconds"])
    report.check("correct/export/logits", at_most(1e-3), export_gap)


def largest_logit_gap(exported, out, device):
    """Between the newest checkpoint in `out` and its export as Hugging Face's model, both on the device."""
    import torch
    from transformers import AutoModelForCausalLM

    from blockwise.checkpoint import load_checkpoint, require_checkpoint
    from model import Transformer

    theirs = AutoModelForCausalLM.from_pretrained(exported).float().to(device).eval()
    ours = Transformer.from_checkpoint(load_checkpoint(require_checkpoint(out))).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (4, ours.config.block_size), generator=generator).to(device)  # (B, T)
    with torch.no_grad():
        return (ours(tokens) - theirs(tokens).logits).abs().max().item()


def process_checks(report, place, runs):
    """Two processes: on one device with gloo, refused there with NCCL, and on two devices."""
    one = "cuda:0" if place.device == "cuda" else place.device
    words = (*place.common(10), *LLAMA)
    gloo = launch(place, "gloo", (*words, f"--device={one}", "--backend=gloo"), env={"NVIDIA_TF32_OVERRIDE": "0"})
    report.check("correct/two_processes/loss", at_most(1e-4), partial(gap, gloo, runs["llama"]))

    def refused(name, device, env):
        run = launch(place, name, (*words, f"--device={device}"), limit=60, env=env)
        if run.result["status"] == 0:
            raise RuntimeError("it was not refused")
        return run.errors

    lacks = place.no_cuda("needs a GPU that NCCL could use")
    for name, device, env in (
        ("nccl_by_number", one, {}),
        ("nccl", "cuda", {"CUDA_VISIBLE_DEVICES": "0"} | place.this_device),
    ):
        report.check(f"correct/{name}/lines_of_refusal", equal(1), partial(refused, name, device, env), lacks)
    report.section("correct/two_gpus", two_gpu_checks, place, runs, words)


def two_gpu_checks(report, place, runs, words):
    """Where each process has its own; the losses of one, in bfloat16."""
    import torch

    lacks = "" if torch.cuda.device_count() >= 2 else "needs 2 GPUs"

    def losses(way):
        keys = (*words, "--device=cuda", "--dtype=bfloat16", "--compile=True", f"--parallel={way}")
        return gap(launch(place, way, keys, limit=150, env={"TORCH_LOGS": "graph_breaks"}), runs["bfloat16"])

    def breaks(way):
        return (place.scratch / "jobs" / way / "stderr").read_text().count("Graph break")

    def lines_of_a_bad_id():
        run = launch(place, "bad_id", (*words, "--dataset=bad", "--max_iters=1000", "--device=cuda"), limit=90)
        return run.errors

    devices = lambda: run_one(place, "second_gpu", (*words, "--device=cuda:1")).done.result["devices"]  # noqa: E731
    report.check("correct/second_gpu/devices_in_use", equal(1), devices, lacks)
    for way in ("ddp", "fsdp"):
        report.check(f"correct/{way}/loss", at_most(3e-2), partial(losses, way), lacks)
        report.check(f"correct/{way}/breaks", equal(0), partial(breaks, way), lacks)
    report.check("correct/one_rank_ends/lines", equal(1), lines_of_a_bad_id, lacks)
