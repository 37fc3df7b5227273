"""Find learning rates for your own model and data: one for each block type, or a single one where that is as good.

    python tune.py config/mine.py --budget=20 --hours=4 --plan    # measure this machine, print the plan, and exit
    python tune.py config/mine.py --budget=20 --hours=4           # run it; the same command resumes it
    python train.py config/mine.py out/tune/rates.py              # train with what it found
    python -m blockwise.blocks MODEL --as=nemo --rates=out/tune/rates.json    # or let another trainer do so

config/mine.py is any config of train.py, nanoGPT's too, with your model, data and batch size. tune.py trains it many
times, by AdamW (or --optimizer=muon) with one learning rate for all weights, and with one per block type. Each gets the
same number of trials of peak rate, warmup, beta2 and weight decay, most with a quarter of the steps. The best of each
runs again with new seeds, and the difference of their losses decides: rates per block, or one rate. Results go to
--out_dir (out/tune). --budget is the length of a full run (20 is about compute-optimal), --hours sets the number of
trials and seeds. A large model is searched on a smaller one, --proxy.n_embd=64 --proxy.n_head=2, with the same tokens
per parameter and steps. Nobody has shown that its rates hold beyond twice its width: sweep learning_rate there.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Annotated

from blockwise import NotFinite, UserError, exit_on_user_error, print0
from blockwise.curves import curve, read_rows
from blockwise.files import remove, write_text
from blockwise.keys import ABOVE_0, Range
from blockwise.settings import ARCHITECTURE, BLOCKS, TrainConfig
from blockwise.study.config import StudyConfig, config_file
from blockwise.study.plan import Study
from blockwise.study.report import print_plan
from blockwise.study.results import changed
from blockwise.study.runner import slots
from blockwise.study.session import any_failed, run_study
from blockwise.study.space import MULT, split_factors
from configurator import configure

FLAGS = {"plan": "measure the machine, print what would run and how long it takes, and exit"}
ONE, BLOCKWISE = "one rate", "rates per block"
# Points of each arm, seeds of their first rung, seeds of the verdict: the first that fits (six points are too few)
DESIGNS = (64, 2, 32), (48, 2, 16), (32, 2, 16), (32, 2, 8), (24, 1, 8), (24, 1, 4), (16, 1, 4)


@dataclass
class TuneConfig(TrainConfig):
    """The keys of tune.py, in addition to those of train.py."""

    # fmt: off
    budget: Annotated[float | None, "tokens per parameter of a run (None: as many steps as max_iters says)", ABOVE_0] = None
    hours: Annotated[float, "time for all runs together on this machine", Range(0)] = 4.0
    proxy: Annotated[dict[str, int | float | bool | str], "keys of a smaller model to search on, such as --proxy.n_embd=64"] = field(default_factory=dict)
    margin: Annotated[float, "smallest gain, in nats per token, for which rates per block are worth having", Range(0)] = 0.01
    jobs: Annotated[int | None, "runs at a time (None: one a GPU; on a CPU one a core)", Range(1)] = None
    # fmt: on


def sizes(config):
    """(parameters, tokens of the validation text) of a config."""
    import torch

    from blockwise.data.mixture import open_dataset
    from model import ModelConfig, Transformer

    data = open_dataset(config.data_dir, config.dataset, config.block_size, config.vocab_size)
    shape = replace(config, vocab_size=config.vocab_size or data.embedding_rows).resolved()
    with torch.device("meta"):
        count = sum(p.numel() for p in Transformer(ModelConfig.of(shape)).parameters())
    return count, sum(part.tokens for part in data.val.parts)


def settings_of(config):
    """(settings of the search's runs, on the proxy if there is one; the steps of the model itself)."""
    changes = [f"--{key}={value}" for key, value in config.proxy.items()]
    target, small = (configure(TrainConfig, words, "", start=config)[0] for words in ([], changes))
    config.check("proxy", config.proxy.keys() <= {*ARCHITECTURE}, f"keys of a model: {', '.join(ARCHITECTURE)}")
    config.check("learning_rate", config.learning_rate > 0, "above 0")
    (full, _), (count, val_tokens) = sizes(target), sizes(small)
    steps = round(config.budget * full / target.tokens_per_step) if config.budget else target.max_iters
    config.check("budget" if config.budget else "max_iters", steps > 1, f"more than the {steps} steps that this is")
    tokens = steps * target.tokens_per_step * count / full  # of a run: as many per parameter as the model itself has
    sequences = max(1, round(tokens / steps / small.block_size))  # of a step
    small = replace(small, batch_size=min(target.batch_size, sequences))
    small = replace(small, gradient_accumulation_steps=max(1, round(sequences / small.batch_size)))
    short = max(1, round(tokens / small.tokens_per_step))
    for what, n, length, c in (("the model", full, steps, target), ("a run", count, short, small)):
        print0(f"{what}: {n:,} parameters, {length:,} steps of {c.tokens_per_step:,} tokens")
    ratio = min(1.0, config.min_lr / config.learning_rate) if config.min_lr_ratio is None else config.min_lr_ratio
    return replace(
        small, max_iters=short, lr_decay_iters=short, warmup_iters=short // 10, min_lr_ratio=ratio, test_loss=True,
        eval_interval=max(1, short // 4), log_interval=max(1, short // 50), full_eval=val_tokens < tokens / 10,
        eval_iters=max(1, round(tokens / 20 / (small.batch_size * small.block_size))),
    ), steps  # fmt: skip


def study_of(config, settings, folder, **more):
    """A study of these settings, with further keys."""
    own = {"out_dir": str(folder), "jobs": config.jobs, "baseline": ONE, "floors": {"floor as configured": ""}}
    return StudyConfig(**vars(settings) | own | {"arms": {ONE: "--blockwise=False"}} | more)


def measured(config, settings, folder):
    """(seconds of a run beside its steps, seconds a step, runs side by side), by runs of 30 steps on this machine."""
    side_by_side = len(slots(study_of(config, settings, folder)))
    settings = replace(settings, max_iters=30, lr_decay_iters=30, warmup_iters=3, eval_interval=0, log_interval=1)
    more = {"learning_rates": {ONE: [1e-4]}, "untuned": [ONE], "seeds": list(range(side_by_side)), "extensions": 0}
    remove(folder)  # of a call that was ended here: how long a resumed run takes is not known
    if not (found := run_study(Study(study_of(config, settings, folder, **more), configure))):
        sys.exit(0)  # stopped by a signal
    if any_failed(found):
        raise UserError(f"the runs that measure this machine failed: see {folder / 'runs'}")
    seconds = [run["seconds"] for run in found["runs"]]
    speeds = [[v for _, v in curve(read_rows(run), "tokens_per_s")][-20:] for run in (folder / "runs").iterdir()]
    step = settings.tokens_per_step / min(map(harmonic_mean, speeds))
    return max(0.0, max(seconds) - 30 * step), step, side_by_side


def plan(config, settings, folder):
    """The study that fits into the hours. Raises UserError where none does."""
    overhead, step, side_by_side = measured(config, settings, folder / "speed")
    short, whole = (overhead + share * settings.max_iters * step for share in (0.25, 1))
    for points, first, seeds in DESIGNS:
        keep = max(2, points // 4)
        hours = 2 * (points * first * short + (keep + 2 * seeds) * whole) / side_by_side / 3600
        if hours <= config.hours:
            break
    else:
        expected = f"at least {hours:.2g} on this machine, or a smaller --budget, or a smaller model by --proxy.n_embd="
        raise UserError(f"hours={config.hours:g}: expected {expected}")
    print0(f"a run takes {whole:.0f} s, {side_by_side} at a time: {points} points an arm, {hours:.2g} h in all at most")
    tied = settings.resolved().tie_weights  # then there is no Head
    space = {
        "learning_rate": [1 / 8, 8, "log"], "beta2": [0.9, 0.999, "log"], "weight_decay": [0.003, 0.3, "log"],
        "warmup_iters": [settings.max_iters // 50, settings.max_iters * 7 // 10],
        MULT + ("Emb" if tied else "Emb+Head"): [1, 24, "log"], **({} if tied else {MULT + "Head": [0.25, 4, "log"]}),
        MULT + "QK": [0.5, 8, "log"], MULT + "VO": [0.25, 2, "log"], MULT + "FFN": [0.25, 2, "log"],
    }  # fmt: skip
    centre = config.learning_rate  # of FFN, which most weights are
    centre *= config.resolved().lr_mult["FFN"] if config.blockwise and config.lr_mult != "auto" else 1
    blockwise = shlex.join(["--blockwise=True", "--lr_rule=paper", f"--lr_mult={dict.fromkeys(BLOCKS, 1.0)}"])
    return study_of(
        config, settings, folder, search="sobol", points=points, rungs=[[0.25, first, keep], [1, 1, 2]], space=space,
        search_seed=10_000 + 100 * config.seed, seeds=[100 * config.seed + i for i in range(seeds)],
        looks=[n for n in (8, 16, 32) if n < seeds] + [seeds], arms={ONE: "--blockwise=False", BLOCKWISE: blockwise},
        learning_rates={ONE: [centre], BLOCKWISE: [centre]}, margin=config.margin,
    )  # fmt: skip


def answer(found, steps):
    """(the answer in a sentence, {key of train.py: value} of the arm that it recommends) of what the study found."""
    (arms,), study = found["places"].values(), found["study"]
    test, speed = (arms[BLOCKWISE][key] for key in ("test", "speedup"))
    if test["low"] is None:
        raise NotFinite("too few runs ended without diverging: expected a lower learning_rate to search around")
    gain = f"{test['gap']:+.4f} nats ({test['low']:+.4f} to {test['high']:+.4f}, {test['seeds']} seeds)"
    gain += f", {speed['ratio']:.2f}x in steps ({speed['low']:.2f} to {speed['high']:.2f})" if speed else ""
    best = arms[BLOCKWISE if test["word"].startswith("lower") else ONE]
    keys = {key: study[key] for key in ("optimizer", "beta1", "min_lr_ratio") if study[key] is not None}
    values, factors = split_factors(best["tuned"])
    keys |= {"learning_rate": best["best"], **values, "blockwise": best["role"] != "baseline"}
    warmup = round(keys["warmup_iters"] / study["max_iters"] * steps)
    keys |= {"warmup_iters": warmup, "max_iters": steps, "lr_decay_iters": steps}
    if keys["blockwise"]:
        lr_mult = {block: float(f"{factors.get(block, 1.0):.4g}") for block in BLOCKS}
        return f"rates per block: {test['word']}, {gain}", keys | {"lr_rule": "paper", "lr_mult": lr_mult}
    why = "within the margin" if "equivalent" in test["word"] else f"rates per block: {test['word']}"
    return f"{why}: use one rate of {best['best']:g}; with rates per block {gain}", keys


def main(argv):
    from blockwise.training.machine import check_machine

    config, _, flags = configure(TuneConfig, argv, __doc__, FLAGS)
    folder = Path(config.out_dir if any(arg.startswith("--out_dir=") for arg in argv) else "out/tune")
    file, asked = folder / "study.py", f"# python tune.py {shlex.join(arg for arg in argv if arg != '--plan')}"
    settings, steps = settings_of(config)
    check_machine([settings], settings.device)
    if not file.is_file():
        write_text(file, config_file(changed(plan(config, settings, folder)), asked))
    elif file.read_text(errors="replace").partition("\n")[0] != asked:
        raise UserError(f"{file} was made by other arguments: expected another --out_dir, or those in its first line")
    study = Study(configure(StudyConfig, [str(file)], "")[0], configure)
    if flags:
        print_plan(study)
        return 0
    if not (found := run_study(study)) or any_failed(found):
        return int(found is not None)
    text, keys = answer(found, steps)
    proxy = "".join(f"with {k}={v}, " for k, v in config.proxy.items())
    head = f"{asked}\n# {text}\n# Found {proxy}on {config.dataset}: see {folder / 'report.md'}"
    write_text(folder / "rates.py", config_file(keys, head))
    write_text(folder / "rates.json", json.dumps({"answer": text, "rates": keys}, indent=1) + "\n")
    print0(f"{text}\nwrote {folder / 'rates.py'}: python train.py CONFIG {folder / 'rates.py'}")
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
