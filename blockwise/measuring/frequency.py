"""Loss by how frequent a token is in the training text, of one run or of two: frequency_BY_STEP.json.

The tokens are cut into ten parts by their number in the training split, from rare to frequent, so that each part has
about a tenth of the training text. What one run gains on another, and where, is then seen part by part.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from blockwise import UserError
from blockwise.loader import eval_starts
from blockwise.measuring import progress_bar, write_json
from blockwise.measuring.models import models_of

PARTS = 10


def measure(config, models, split, world, data, run, transformer):
    """Measure every model; rank 0 writes a JSON file for each.

    split, data: the training tokens, and the data set that they are of; run: the run's config; transformer:
    model.Transformer. The newest checkpoints of two runs are compared whatever their steps, all of them step by step.
    Raises UserError for a run with a shorter context, and where nothing says how many sequences to take.
    """
    others, other_run = models_of(replace(config, out_dir=config.against), transformer) if config.against else ([], {})
    if other_run.get("block_size", config.block_size) < config.block_size:
        problem = f"the context of {config.against} is {other_run['block_size']}"
        raise UserError(f"block_size={config.block_size}: expected at most that of both: {problem}")
    sequences = run.get("eval_iters", 0) * run.get("batch_size", 0)
    sequences = config.batches * config.batch_size if config.batches else sequences
    if not sequences:
        raise UserError("batches=None: expected a number, since no run says how many sequences it was evaluated on")
    counts = token_counts(split, data.embedding_rows)
    part_of, by_step = parts(counts), dict(others)
    starts = eval_starts(data.val, sequences, config.block_size)
    sums = partial(loss_sums, config, data.val, starts, torch.from_numpy(part_of), world)
    with progress_bar(world, total=len(models) + len(others), unit="model") as progress:
        for step, load in models:
            totals, numbers = sums(load()[0].to(world.device))
            progress.update()
            load = by_step.get(step) if config.checkpoints == "all" else next(iter(by_step.values()), None)
            other = sums(load(data)[0].to(world.device))[0] if load else None
            progress.update(other is not None)
            if world.is_master:
                write_frequency(config, step, totals, numbers, other, counts, part_of)


def token_counts(split, rows):
    """How often each token occurs in a split: (rows,) int64, in pieces of 16 M tokens."""
    ids, counts = split.ids(), np.zeros(rows, dtype=np.int64)
    for start in range(0, len(ids), 1 << 24):
        counts += np.bincount(ids[start : start + (1 << 24)], minlength=rows)
    return counts


def parts(counts):
    """Part of every token, 0 (rare) to 9 (frequent), by its count in the training text: (V,) int64.

    A token belongs where the middle of its occurrences lies when all are put in the order of frequency; one that is
    more frequent than a tenth of the text leaves the parts that it spans empty.
    """
    order = np.argsort(counts, kind="stable")
    ordered = counts[order]
    middle = (np.cumsum(ordered) - ordered / 2) / max(ordered.sum(), 1)
    part_of = np.empty(len(counts), dtype=np.int64)
    part_of[order] = np.minimum(PARTS * middle, PARTS - 1)
    return part_of


@torch.no_grad()
def loss_sums(config, split, starts, part_of, world, model):
    """Sum of the losses, in nats, and number of positions of every sequence and part: (N, 10) float64 each."""
    totals = torch.zeros(2, len(starts), PARTS, dtype=torch.float64)
    model.eval()
    size = config.micro_batch or config.batch_size
    for number, first in enumerate(range(0, len(starts), size)):
        if number % world.size != world.rank:
            continue
        x, y = split.sequences(starts[first : first + size], config.block_size)  # (B, T) each
        logits = model(x.to(world.device)).float()  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1), y.to(world.device).flatten(), reduction="none")
        losses = losses.view(y.shape).double().cpu()
        part = part_of[y if config.by == "target" else x]  # (B, T)
        for value, total in zip((losses, torch.ones_like(losses)), totals, strict=True):
            total[first : first + size].scatter_add_(1, part, value)
    totals, numbers = world.all_reduce_sum([totals[0], totals[1]])
    if not totals.isfinite().all():
        raise UserError(f"out_dir={config.out_dir}: the loss of its model is not finite")
    return totals, numbers


def mean_and_error(totals, numbers):
    """Mean per position of sums (N, K) over positions (N, K), and its standard error over the sequences: (K,) each.

    NaN where there are no positions; the error also with a single sequence.
    """
    mean = totals.sum(0) / numbers.sum(0)
    spread = (totals - mean * numbers).square().sum(0) * len(totals) / (len(totals) - 1 or torch.nan)
    return mean, spread.sqrt() / numbers.sum(0)


def write_frequency(config, step, totals, numbers, other, counts, part_of):
    mean, error = mean_and_error(totals, numbers)
    columns = {"loss": mean, "error": error}
    whole = {"loss": (totals.sum() / numbers.sum()).item()}
    if other is not None:
        difference, its_error = mean_and_error(totals - other, numbers)
        columns |= {"against": mean - difference, "difference": difference, "difference_error": its_error}
        whole |= {"against": (other.sum() / numbers.sum()).item()}
        one, two = mean_and_error((totals - other).sum(1, keepdim=True), numbers.sum(1, keepdim=True))
        whole |= {"difference": one.item(), "difference_error": plain(two)}
    rows = []
    for part in range(PARTS):
        ordered = counts[part_of == part]
        if not numbers[:, part].sum():
            continue
        row = {"part": part + 1, "tokens": len(ordered), "least": int(ordered.min()), "most": int(ordered.max())}
        row["positions"] = int(numbers[:, part].sum())
        rows.append(row | {name: plain(values[part]) for name, values in columns.items()})
    measured = {
        "step": step, "by": config.by, "dataset": config.dataset, "sequences": len(totals), "out_dir": config.out_dir,
        "against": config.against if other is not None else None, "training_tokens": int(counts.sum()),
        "all": whole, "parts": rows,
    }  # fmt: skip
    write_json(config, f"frequency_{config.by}", measured)
    tqdm.write(f"step {step}: loss by frequency of the {config.by} token, rare to frequent")
    for row in [*rows, {"part": "all", "tokens": len(counts), **whole}]:
        text = f"  {row['part']:>3}  {row['tokens']:>7,} tokens   loss {row['loss']:.4f}"
        if "difference" in row:
            error = "" if row["difference_error"] is None else f" +- {row['difference_error']:.4f}"
            text += f"   against {row['against']:.4f}   difference {row['difference']:+.4f}{error}"
        tqdm.write(text)


def plain(number):
    """A number for JSON; None for NaN."""
    return None if number.isnan() else number.item()
