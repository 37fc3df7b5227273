"""Tokenized data sets, and batches that are addressed, not streamed.

A batch is a function of (seed, step, micro-step): there is no position to save, a resumed run sees what it would have
seen, and so does any number of processes. Format: data/NAME/{train,val}.bin, little-endian uint16 token ids, and
meta.json; nanoGPT's meta.pkl, or no description at all (GPT-2 tokens), are read too.
"""

import difflib
import io
import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from blockwise import UserError
from blockwise.files import sha256

GPT2 = {"tokenizer": "gpt2", "vocab_size": 50257}
# What reading damaged JSON or a damaged pickle raises
BROKEN = (
    ValueError, TypeError, AttributeError, EOFError, IndexError, OverflowError, MemoryError, RecursionError,
    pickle.UnpicklingError,
)  # fmt: skip
PROBE = 1 << 40  # steps from here on are no training's: their sequences are the probes'
SCAN_BYTES = 1 << 30  # files from here on are not scanned at every start; their batches are checked one by one


@dataclass
class Split:
    """One file of token ids. bound: ids must be below it; checked: all of them are known to be."""

    path: Path
    tokens: int
    bound: int
    checked: bool = False

    def sequences(self, starts, block_size):
        """Inputs and targets, each (len(starts), block_size) int64 on the CPU; raises UserError for a bad id."""
        # Mapped anew for every batch: a lasting map keeps each page it ever touched in the process's memory.
        ids = np.memmap(self.path, dtype="<u2", mode="r")
        chunk = ids[np.asarray(starts)[:, None] + np.arange(block_size + 1)]  # (B, T+1)
        if not self.checked and chunk.size:
            self._check(chunk)
        chunk = torch.from_numpy(chunk.astype(np.int64))
        return chunk[:, :-1], chunk[:, 1:]

    def _check(self, ids):
        if ids.max() >= self.bound:
            raise UserError(f"{self.path}: token id {ids.max()} where the vocabulary has {self.bound}; prepare it anew")

    def check_all(self):
        """Scan the whole file for ids out of range."""
        ids = np.memmap(self.path, dtype="<u2", mode="r")
        for start in range(0, len(ids), 1 << 24):
            self._check(ids[start : start + (1 << 24)])
        self.checked = True


@dataclass
class Dataset:
    """A data set's two splits, its vocabulary and its tokenizer (a plain dict; see tokenizer.py)."""

    train: Split
    val: Split
    embedding_rows: int  # what the model needs: the data's vocabulary, padded, unless the number was given
    tokenizer: dict
    hashes: dict = field(default_factory=dict)

    @classmethod
    def open(cls, data_dir, name, block_size, vocab_size=None):
        """Find and check a data set: its files, their sizes, and the range of ids where a scan is cheap.

        vocab_size: rows of the embedding, used as given; None: the data's number, up to a multiple of 64.
        Raises UserError for what is missing or broken.
        """
        folder = Path(data_dir) / name
        for path in (folder / "train.bin", folder / "val.bin"):
            if not path.is_file():
                raise UserError(not_prepared(data_dir, name, path))
        meta = read_meta(folder)
        if vocab_size is not None and vocab_size < meta["vocab_size"]:
            raise UserError(f"vocab_size={vocab_size}: data set {name} needs at least {meta['vocab_size']}")
        splits, hashes = {}, {}
        for split in ("train", "val"):
            path = folder / f"{split}.bin"
            size = path.stat().st_size
            if size % 2:
                raise UserError(f"{path} has an odd length, {size} bytes: expected uint16 token ids; prepare it anew")
            if size // 2 < block_size + 1:
                raise UserError(f"{path} has {size // 2} tokens: expected at least block_size + 1 = {block_size + 1}")
            stated = meta.get("splits", {}).get(split)
            if stated and stated["tokens"] != size // 2:
                raise UserError(f"{path} has {size // 2} tokens, meta.json says {stated['tokens']}: prepare it anew")
            hashes[split] = stated and stated["sha256"]
            splits[split] = Split(path, size // 2, bound=vocab_size or meta["vocab_size"])
            if stated is None or size < SCAN_BYTES:
                splits[split].check_all()
        if "tokenizer_file" in meta:
            meta["json"] = read_tokenizer(folder / meta["tokenizer_file"]["name"], meta["tokenizer_file"]["sha256"])
        padded = -(-meta["vocab_size"] // 64) * 64
        tokenizer = {k: v for k, v in meta.items() if k in ("tokenizer", "vocab_size", "chars", "json", "end_of_text")}
        return cls(splits["train"], splits["val"], vocab_size or padded, tokenizer, hashes)

    @property
    def identity(self):
        return {"tokenizer": self.tokenizer, **self.hashes}

    def verify(self):
        """Check every id and, where meta.json states them, the files' hashes. Raises UserError."""
        for split in ("train", "val"):
            part = getattr(self, split)
            part.check_all()
            if self.hashes[split] and sha256(part.path) != self.hashes[split]:
                raise UserError(f"{part.path} does not have the sha256 that its meta.json states; prepare it anew")


def train_batch(split, seed, step, micro, batch_size, block_size):
    """Random sequences of micro-step `micro` (counted over all processes) of `step`: two (B, T) tensors."""
    rng = np.random.default_rng((seed, step, micro))
    return split.sequences(rng.integers(split.tokens - block_size, size=batch_size), block_size)


def probe_batch(split, seed, number, indices, block_size):
    """Random sequences of these indices in probe batch `number`, (N, T) twice: any process's share of it, or none."""
    rngs = [np.random.default_rng((seed, PROBE + number, index)) for index in indices]
    starts = [rng.integers(split.tokens - block_size) for rng in rngs]
    return split.sequences(np.array(starts, dtype=np.int64), block_size)


def eval_starts(split, sequences, block_size):
    """Starts of that many evenly spaced sequences, which overlap if the split is short: (sequences,) int64."""
    return np.linspace(0, split.tokens - block_size - 1, sequences).astype(np.int64)


def micro_seed(seed, step, micro):
    """Seed of the dropout of one micro-step, from its address."""
    return int(np.random.SeedSequence((seed, step, micro, 1)).generate_state(1)[0])


def not_prepared(data_dir, name, path):
    where = "" if Path(data_dir) == Path("data") else f" --data_dir={data_dir}"
    if name != "text" and (Path(__file__).parents[1] / "data" / name / "prepare.py").is_file():
        return f"data set {name!r} is not prepared: {path} is missing; run: python data/{name}/prepare.py{where}"
    base, _, tokenizer = name.rpartition("_")  # kjv_bpe4096 is kjv's, by another tokenizer
    if re.fullmatch(r"bpe\d+|gpt2", tokenizer) and base in ("kjv", "pylib"):
        script = f"data/{base}/prepare.py --tokenizer={tokenizer.replace('bpe', 'bpe:')}"
        return f"data set {name!r} is not prepared: {path} is missing; run: python {script}{where}"
    known = sorted({p.parent.name for folder in (data_dir, "data") for p in Path(folder).glob("*/*.bin")})
    near = difflib.get_close_matches(name, known)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    own = f"for your own text: python data/text/prepare.py FILE --name={name}{where}"
    return f"no data set {name!r}: {path} is missing{hint}; {own}"


def read_meta(folder):
    """What describes a data set: meta.json, else nanoGPT's meta.pkl, else GPT-2 tokens. Raises UserError if broken."""
    path = folder / "meta.json"
    try:
        if path.is_file():
            meta = json.loads(path.read_text(encoding="utf-8"))
            tokens = [meta["splits"][split]["tokens"] for split in ("train", "val")]
            if not all(type(n) is int for n in [meta["vocab_size"], *tokens]) or meta["dtype"] != "uint16":
                raise ValueError("vocab_size and tokens must be integers, dtype uint16")
            if meta["tokenizer"] == "chars" and len(meta["chars"]) != meta["vocab_size"]:
                raise ValueError("its chars are not as many as its vocab_size")
            [meta["splits"][split]["sha256"] for split in ("train", "val")]
            if not 0 < meta["vocab_size"] <= 65536:
                raise ValueError(f"vocab_size {meta['vocab_size']} does not fit uint16 token ids")
            if "tokenizer_file" in meta:
                [folder / meta["tokenizer_file"]["name"], meta["tokenizer_file"]["sha256"]]
            return {"tokenizer": meta["tokenizer"], **meta}
        path = folder / "meta.pkl"
        if path.is_file():
            meta = PlainUnpickler(io.BytesIO(path.read_bytes())).load()
            chars = [meta["itos"][i] for i in range(int(meta["vocab_size"]))]
            if not all(isinstance(char, str) for char in chars):
                raise ValueError("its itos must give strings")
            return {"tokenizer": "chars", "vocab_size": int(meta["vocab_size"]), "chars": chars}
    except KeyError as error:
        raise UserError(f"{path} lacks {error}; prepare the data set anew") from None
    except BROKEN as error:
        raise UserError(f"{path} is broken: {error or type(error).__name__}; prepare the data set anew") from None
    return dict(GPT2)


def read_tokenizer(path, digest):
    """The text of a data set's tokenizer.json. Raises UserError if it is not the one that meta.json states."""
    if not path.is_file():
        raise UserError(f"{path} is missing, and the data set's meta.json names it; prepare the data set anew")
    if sha256(path) != digest:
        raise UserError(f"{path} does not have the sha256 that its meta.json states; prepare the data set anew")
    return path.read_text(encoding="utf-8")


class PlainUnpickler(pickle.Unpickler):
    """Admits numbers, strings and containers: a pickle may otherwise run any code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and only plain data is read")
