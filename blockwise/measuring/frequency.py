"""Loss by how frequent a token is in the training text, of one run or of two: frequency_STEP.json.

The tokens are cut into ten parts by their number in the training split, from rare to frequent, so that each part has
about a tenth of the training text. What one run gains on another, and where, is then seen part by part.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from blockwise import UserError
from blockwise.loader import eval_starts
from blockwise.measuring import progress_bar
from blockwise.measuring.models import models_of

PARTS = 10


class Frequency:
    """The newest checkpoints of two runs are compared whatever their steps, all of them step by step."""

    def __init__(self, config, data, run, world, transformer):
        """transformer: model.Transformer, for the other run. Raises UserError for one with a shorter context."""
        self.config, self.data, self.world = config, data, world
        self.others, self.newest = {}, None
        if config.against:
            others, other_run = models_of(replace(config, out_dir=config.against), transformer)
            self.others, self.newest = dict(others), others[-1][0]
            if other_run["block_size"] < config.block_size:
                problem = f"the context of {config.against} is {other_run['block_size']}"
                raise UserError(f"block_size={config.block_size}: expected at most that of both: {problem}")
        sequences = config.batches * config.batch_size if config.batches else run["eval_iters"] * run["batch_size"]
        self.counts = token_counts(data.train, data.embedding_rows)
        self.part_of = parts(self.counts)
        self.starts = eval_starts(data.val, sequences, config.block_size)

    def measure(self, step, model, checkpoint):
        totals, numbers = self.loss_sums(model)
        mean, error = mean_and_error(totals, numbers)
        columns = {"loss": mean, "error": error}
        load = self.others.get(step if self.config.checkpoints == "all" else self.newest)
        if load:
            other, _ = self.loss_sums(load(self.data)[0].to(self.world.device))
            difference, its_error = mean_and_error(totals - other, numbers)
            columns |= {"against": mean - difference, "difference": difference, "difference_error": its_error}
        *found, whole = [{name: plain(values[at]) for name, values in columns.items()} for at in range(PARTS + 1)]
        rows = []
        for part, losses in enumerate(found):
            counts, positions = self.counts[self.part_of == part], int(numbers[:, part].sum())
            if positions:
                row = {"part": part + 1, "tokens": len(counts), "least": int(counts.min()), "most": int(counts.max())}
                rows.append(row | {"positions": positions} | losses)
        return {
            "sequences": len(totals), "out_dir": self.config.out_dir,
            "against": self.config.against if load else None, "training_tokens": int(self.counts.sum()),
            "all": {"tokens": len(self.counts)} | whole, "parts": rows,
        }  # fmt: skip

    @torch.no_grad()
    def loss_sums(self, model):
        """Sums of the losses, in nats, and numbers of positions, by sequence and part; the last is all: (N, 11)."""
        config, world, starts = self.config, self.world, self.starts
        part_of = torch.from_numpy(self.part_of)
        totals, numbers = torch.zeros(2, len(starts), PARTS, dtype=torch.float64)
        model.eval()
        size = config.micro_batch or config.batch_size
        with progress_bar(world, total=len(starts), unit="sequence") as progress:
            for first in range(size * world.rank, len(starts), size * world.size):
                x, y = self.data.val.sequences(starts[first : first + size], config.block_size)  # (B, T) each
                logits = model(x.to(world.device)).float()  # (B, T, V)
                losses = F.cross_entropy(logits.flatten(0, 1), y.to(world.device).flatten(), reduction="none")
                losses = losses.view(y.shape).double().cpu()
                part = part_of[y]  # (B, T)
                totals[first : first + size].scatter_add_(1, part, losses)
                numbers[first : first + size].scatter_add_(1, part, torch.ones_like(losses))
                progress.update(size * world.size)
        totals, numbers = world.all_reduce_sum([totals, numbers])
        if not totals.isfinite().all():
            raise UserError(f"out_dir={config.out_dir}: the loss of its model is not finite")
        return [torch.cat((parts, parts.sum(1, keepdim=True)), 1) for parts in (totals, numbers)]

    def report(self, found):
        yield "loss by frequency of the target token, rare to frequent"
        for row in [*found["parts"], {"part": "all", **found["all"]}]:
            text = f"  {row['part']:>3}  {row['tokens']:>7,} tokens   loss {row['loss']:.4f}"
            if "difference" in row:
                error = "" if row["difference_error"] is None else f" +- {row['difference_error']:.4f}"
                text += f"   against {row['against']:.4f}   difference {row['difference']:+.4f}{error}"
            yield text


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


def mean_and_error(totals, numbers):
    """Mean per position of sums (N, K) over positions (N, K), and its standard error over the sequences: (K,) each.

    NaN where there are no positions; the error also with a single sequence.
    """
    mean = totals.sum(0) / numbers.sum(0)
    spread = (totals - mean * numbers).square().sum(0) * len(totals) / (len(totals) - 1 or torch.nan)
    return mean, spread.sqrt() / numbers.sum(0)


def plain(number):
    """A number for JSON; None for NaN."""
    return None if number.isnan() else number.item()
