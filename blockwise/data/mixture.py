"""Mixtures of data sets, dataset=a:0.7,b:0.3: each sequence is one of theirs, drawn by share, at an address."""

import hashlib
import json
import math

import numpy as np
import torch

from blockwise import UserError
from blockwise.loader import Dataset, Split, tokenizer_digest
from blockwise.settings import mixture_shares


def open_dataset(data_dir, name, block_size, vocab_size=None):
    """Dataset.open, or the Dataset of a mixture. Raises UserError as that does, and for parts of several tokenizers."""
    shares = mixture_shares(name)
    if name in shares:
        return Dataset.open(data_dir, name, block_size, vocab_size)
    parts = [Dataset.open(data_dir, part, block_size, vocab_size) for part in shares]
    first = parts[0]
    for part in parts:
        if tokenizer_digest(part.tokenizer) != tokenizer_digest(first.tokenizer):
            tokenizers = f"{first.tokenizer['tokenizer']}, {part.tokenizer['tokenizer']}"
            raise UserError(
                f"dataset={name}: {first.name} and {part.name} have other tokenizers ({tokenizers}): expected parts "
                "that were prepared with one"
            )
    train, val = (MixedSplit(shares, [getattr(part, split) for part in parts]) for split in ("train", "val"))
    tokenizer = next((part.tokenizer for part in parts if part.end_of_text is not None), first.tokenizer)
    note = "; ".join(filter(None, [describe(shares, train), *(part.note for part in parts)]))
    return Dataset(train, val, first.embedding_rows, tokenizer, name, note)


def describe(shares, split):
    parts = zip(shares.items(), split.parts, strict=True)
    return "mixture: " + ", ".join(f"{100 * share:.3g}% {name} ({p.tokens:,} tokens)" for (name, share), p in parts)


class MixedSplit:
    """One split of a mixture; used as a loader.Split. Its sequences start in the parts' files, numbered one after
    another, and none reaches from one into the next."""

    def __init__(self, shares: dict[str, float], parts: list[Split]):
        self.names, self.shares, self.parts = list(shares), np.array(list(shares.values())), parts
        self.ends = np.cumsum([part.tokens for part in parts])  # in the common numbering
        self.tokens = int(self.ends[-1])

    def random_starts(self, rng, number, block_size):
        """Where that many random sequences start, (number,) int64.

        Their parts are drawn systematically, with one random number for all: each part has its share, rounded up
        or down, and on average exactly its share.
        """
        places = (rng.random() + np.arange(number) / number) % 1  # evenly spaced
        which = np.searchsorted(self.shares.cumsum()[:-1], places, side="right")  # (number,), a part each
        sizes = np.array([part.tokens for part in self.parts])
        return (self.ends - sizes)[which] + rng.integers(sizes[which] - block_size)

    def part_of(self, starts):
        return np.searchsorted(self.ends, starts, side="right")

    def sequences(self, starts, block_size):
        starts = np.asarray(starts, dtype=np.int64)
        which = self.part_of(starts)
        x, y = (torch.empty(len(starts), block_size, dtype=torch.int64) for _ in range(2))
        for i in np.unique(which):
            part, rows = self.parts[i], np.flatnonzero(which == i)
            x[rows], y[rows] = part.sequences(starts[rows] - (self.ends[i] - part.tokens), block_size)
        return x, y

    def share_row(self, starts):
        """share/NAME of each part: its share of the sequences that start there."""
        counts = np.bincount(self.part_of(starts), minlength=len(self.parts)) / len(starts)
        return {f"share/{name}": float(count) for name, count in zip(self.names, counts, strict=True)}

    def val_row(self, losses):
        """The rows of the parts under val/loss/NAME; of the mixture the means by share.

        Bits per byte of the mixture are its bits per token over its bytes per token.
        """
        row = {"val/loss": float(np.dot(self.shares, losses))}
        if all(part.bytes for part in self.parts):
            bytes_per_token = np.dot(self.shares, [part.bytes / part.tokens for part in self.parts])
            row["val/bits_per_byte"] = float(row["val/loss"] / math.log(2) / bytes_per_token)
        for name, part, loss in zip(self.names, self.parts, losses, strict=True):
            row |= {f"{key}/{name}": value for key, value in part.val_row([loss]).items()}
        return row

    def fingerprint(self):
        """Of all parts' contents and their shares."""
        prints = [[float(share), part.fingerprint()] for share, part in zip(self.shares, self.parts, strict=True)]
        return hashlib.sha256(json.dumps(prints).encode()).hexdigest()

    def ids(self):
        """Of the first part, as a sample."""
        return self.parts[0].ids()
