"""Tokenized data sets, and batches that are addressed, not streamed.

A batch is a function of (seed, step, micro-step): there is no position to save, a resumed run sees what it would have
seen, and so does any number of processes. Format: data/NAME/{train,val}.bin, little-endian token ids, uint16 or uint32
as meta.json says; nanoGPT's meta.pkl, or no description at all (GPT-2 tokens), are read too, then always as uint16.
"""

import hashlib
import io
import json
import math
import os
import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blockwise import UserError, warn
from blockwise.files import DTYPES, GPT2, UNSUPPORTED, sha256
from blockwise.spelling import close, did_you_mean

TEXT_BYTES = np.array([*b"\t\n\r", *range(32, 127)], dtype=np.uint8)
# What reading damaged JSON or a damaged pickle raises
BROKEN = (
    ValueError, TypeError, AttributeError, EOFError, IndexError, OverflowError, MemoryError, RecursionError,
    pickle.UnpicklingError,
)  # fmt: skip
PROBE = 1 << 40  # steps from here on are no training's: their sequences are the probes'
SCAN_BYTES = 1 << 30  # files from here on are not scanned at every start; their batches are checked one by one


@dataclass
class Split:
    """One file of token ids, which stays open: prepare.py replaces files, and a run keeps those that it began with.

    bound: ids must be below it; checked: all of them are known to be; bytes: of the text, None where nobody says.
    """

    path: Path
    tokens: int
    bound: int
    checked: bool = False
    dtype: str = "uint16"
    bytes: int | None = None
    sha256: str | None = None  # as meta.json states it
    in_memory: Any = None  # ids, where the file system cannot map files

    @cached_property
    def file(self) -> Any:
        return open(self.path, "rb")

    def ids(self):
        """All token ids, (tokens,)."""
        # Mapped again for every batch: a lasting map keeps each page it ever touched in the process's memory.
        if self.in_memory is None:
            try:
                return np.memmap(self.file, dtype=DTYPES[self.dtype], mode="r")
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                warn(f"{self.path} cannot be mapped ({error.strerror}): reading it into memory")
                self.file.seek(0)
                self.in_memory = np.frombuffer(self.file.read(), dtype=DTYPES[self.dtype])
        return self.in_memory

    @property
    def parts(self):
        """The splits that an evaluation covers: this one alone."""
        return [self]

    def random_starts(self, rng, number, block_size):
        """Where that many random sequences start, (number,) int64."""
        return rng.integers(self.tokens - block_size, size=number)

    def val_row(self, losses):
        """{"val/loss": the loss}, in nats per token, and "val/bits_per_byte" of text where its size is known.

        losses: one of each of `parts`.
        """
        [loss] = losses
        row = {"val/loss": loss}
        if self.bytes:
            row["val/bits_per_byte"] = loss / math.log(2) * self.tokens / self.bytes
        return row

    def sequences(self, starts, block_size):
        """Inputs and targets, each (len(starts), block_size) int64 on the CPU, contiguous; UserError for a bad id."""
        chunk = self.ids()[np.asarray(starts)[:, None] + np.arange(block_size + 1)]  # (B, T+1)
        if not self.checked and chunk.size:
            self._check(chunk)
        x, y = chunk[:, :-1], chunk[:, 1:]
        return torch.from_numpy(x.astype(np.int64, "C")), torch.from_numpy(y.astype(np.int64, "C"))

    def _check(self, ids):
        if ids.max() >= self.bound:
            problem = f"token id {ids.max()} where the vocabulary has {self.bound}"
            raise UserError(f"{self.path}: {problem}; prepare it again")

    def check_all(self):
        """Scan the whole file for ids out of range."""
        ids = self.ids()
        for start in range(0, len(ids), 1 << 24):
            self._check(ids[start : start + (1 << 24)])
        self.checked = True

    def check_width(self):
        """Detect files that are not uint16 token ids: an .npy file, wider integers, plain bytes of text."""
        head = self.ids()[: 1 << 16]
        if len(head) < 64:  # too few to tell
            return
        guess = None
        low, high = head[::2], head[1::2]
        if head[:4].tobytes().startswith(b"\x93NUMPY"):
            guess = "a file of numpy.save: write the bare ids with .tofile"
        elif high.max() <= 2 < low.max():  # the upper halves of ids below 196,608, or of int64
            guess = 'wider integers than uint16: convert it, or describe it in a meta.json with "dtype": "uint32"'
        elif self.bound > 30000 and np.isin(head.view("u1"), TEXT_BYTES).mean() > 0.97:
            guess = "text or single bytes, not token ids: prepare it with data/text/prepare.py"
        if guess:
            raise UserError(f"{self.path} looks like {guess}")

    def fingerprint(self):
        """The sha256 that meta.json states, else the file's own; from 1 GB on that of its size and of 64 samples.

        A hash of the whole of a large file would take minutes at every start.
        """
        if self.sha256:
            return self.sha256
        data = self.ids().view("u1")
        if len(data) < SCAN_BYTES:
            return self.digest()
        digest = hashlib.sha256(str(len(data)).encode())
        for start in np.linspace(0, len(data) - (1 << 20), 64).astype(np.int64):
            digest.update(data[start : start + (1 << 20)])
        return "sampled:" + digest.hexdigest()

    def digest(self):
        data, digest = self.ids().view("u1"), hashlib.sha256()
        for start in range(0, len(data), 1 << 24):
            digest.update(data[start : start + (1 << 24)])
        return digest.hexdigest()


@dataclass
class Dataset:
    """A data set's two splits, its vocabulary and its tokenizer (a plain dict; see tokenizer.py).

    note: what a user must know of how the files are taken, "" if there is nothing.
    """

    train: Split
    val: Split
    embedding_rows: int  # what the model needs: the data's vocabulary, padded, unless the number was given
    tokenizer: dict
    name: str = ""
    note: str = ""

    @classmethod
    def open(cls, data_dir, name, block_size, vocab_size=None):
        """Find and check a data set: its files, their sizes, and the range of ids where a scan is cheap.

        vocab_size: rows of the embedding, used as given; None: the data's number, up to a multiple of 64.
        Raises NotPrepared for what is missing, UserError for what is broken.
        """
        folder = Path(data_dir) / name
        for path in (folder / "train.bin", folder / "val.bin"):
            if not path.is_file():
                raise NotPrepared(not_prepared(data_dir, name, path))
        meta = read_meta(folder)
        if vocab_size is not None and vocab_size < meta["vocab_size"]:
            raise UserError(f"vocab_size={vocab_size}: data set {name} needs at least {meta['vocab_size']}")
        splits, width = {}, np.dtype(DTYPES[meta["dtype"]]).itemsize
        for split in ("train", "val"):
            path = folder / f"{split}.bin"
            stated = meta.get("splits", {}).get(split)
            facts = {key: stated and stated.get(key) for key in ("bytes", "sha256")}
            splits[split] = part = Split(path, 0, vocab_size or meta["vocab_size"], dtype=meta["dtype"], **facts)
            size = os.fstat(part.file.fileno()).st_size  # of what is open from here on, whatever its name comes to mean
            part.tokens = size // width
            if size % width:
                problem = f"an odd length, {size} bytes" if width == 2 else f"{size} bytes, no multiple of {width}"
                raise UserError(f"{path} has {problem}: expected {meta['dtype']} token ids; prepare it again")
            if part.tokens < block_size + 1:
                raise UserError(f"{path} has {part.tokens} tokens: expected at least block_size + 1 = {block_size + 1}")
            if stated and stated["tokens"] != part.tokens:
                raise UserError(f"{path} has {part.tokens} tokens, meta.json says {stated['tokens']}: prepare it again")
            if stated is None:
                part.check_width()
            if stated is None or size < SCAN_BYTES:
                part.check_all()
        if "tokenizer_file" in meta:
            meta["json"] = read_tokenizer(folder / meta["tokenizer_file"]["name"], meta["tokenizer_file"]["sha256"])
        keys = ("tokenizer", "vocab_size", "chars", "json", "end_of_text", "bos")
        tokenizer = {key: value for key, value in meta.items() if key in keys}
        rows = vocab_size or padded(meta["vocab_size"])
        return cls(splits["train"], splits["val"], rows, tokenizer, name, meta.get("note", ""))

    @property
    def end_of_text(self):
        """The id that ends a document, None where there is none."""
        default = 50256 if self.tokenizer["tokenizer"] == GPT2["tokenizer"] else None
        return self.tokenizer.get("end_of_text", default)

    @cached_property
    def identity(self):
        """What a run or a checkpoint belongs to: {"dataset": its name, "tokenizer", "train", "val": sha256}."""
        parts = {"train": self.train.fingerprint(), "val": self.val.fingerprint()}
        return {"dataset": self.name, "tokenizer": tokenizer_digest(self.tokenizer), **parts}

    def verify(self):
        """Check every id and, where meta.json states them, the files' hashes. Raises UserError."""
        for part in (*self.train.parts, *self.val.parts):
            part.check_all()
            if part.sha256 and part.digest() != part.sha256:
                raise UserError(f"{part.path} does not have the sha256 that its meta.json states; prepare it again")


class NotPrepared(UserError):
    """A data set's files are not there."""


class AbsentDataset(Dataset):
    """Stands for a data set that is not there, where a run only says what it would do; `verify` raises the error.

    vocab_size: rows of the embedding; None: GPT-2's vocabulary, up to a multiple of 64.
    """

    def __init__(self, name, vocab_size, error):
        rows = vocab_size or padded(GPT2["vocab_size"])
        note = "" if vocab_size else f"data set {name!r} is not there: a vocabulary of {rows:,}, GPT-2's, is assumed"
        super().__init__(None, None, rows, GPT2, name, note)
        self.error = error

    def verify(self):
        raise self.error


def padded(vocab_size):
    """Rows of an embedding for so many ids: up to a multiple of 64, which matrix products are fast with."""
    return -(-vocab_size // 64) * 64


def tokenizer_digest(description):
    """sha256 of a tokenizer's description; marks for a document's ends and its name make no difference."""
    description = {key: value for key, value in description.items() if key not in ("end_of_text", "bos")}
    if "chars" in description:
        description["chars"] = list(description["chars"])  # of meta.pkl a list, of meta.json a string
    if "json" in description:
        del description["tokenizer"]  # a model's folder may have another one
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def train_starts(split, seed, step, micro, batch_size, block_size):
    """Where the sequences of micro-step `micro` (counted over all processes) of `step` start: (B,) int64."""
    return split.random_starts(np.random.default_rng((seed, step, micro)), batch_size, block_size)


def train_batch(split, seed, step, micro, batch_size, block_size):
    """These sequences: two (B, T) tensors."""
    return split.sequences(train_starts(split, seed, step, micro, batch_size, block_size), block_size)


def probe_batch(split, seed, number, indices, block_size):
    """Random sequences of these indices in probe batch `number`, (N, T) twice: any process's share of it, or none."""
    rngs = [np.random.default_rng((seed, PROBE + number, index)) for index in indices]
    starts = [split.random_starts(rng, 1, block_size)[0] for rng in rngs]
    return split.sequences(np.array(starts, dtype=np.int64), block_size)


def eval_starts(split, sequences, block_size, half=None):
    """Starts of that many evenly spaced sequences, which overlap if the split is short: (sequences,) int64.

    half: 0 or 1, of that half of the split alone. Raises UserError for one that holds no sequence.
    """
    begin, end = {None: (0, split.tokens), 0: (0, split.tokens // 2), 1: (split.tokens // 2, split.tokens)}[half]
    if end - begin < block_size + 1:
        raise UserError(f"test_loss=True: half of {split.path} has fewer than block_size + 1 = {block_size + 1} tokens")
    return np.linspace(begin, end - block_size - 1, sequences).astype(np.int64)


def full_batches(split, batch_size, block_size, half=None):
    """Batches of `eval_starts` that cover every token of the split, or of that half of it."""
    tokens = split.tokens if half is None else split.tokens - split.tokens // 2
    return -(-(tokens - 1) // (block_size * batch_size))


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
    prepared = sorted({p.parent.name for folder in (data_dir, "data") for p in Path(folder).glob("*/*.bin")} - {name})
    return (
        f"no data set {name!r}: {path} is missing{did_you_mean(close(name, prepared))}; "
        f"for your own text: python data/text/prepare.py FILE --name={name}{where}"
    )


def read_meta(folder):
    """What describes a data set: meta.json, else nanoGPT's meta.pkl, else GPT-2 tokens. Raises UserError if broken."""
    path = folder / "meta.json"
    try:
        if path.is_file():
            meta = json.loads(path.read_text(encoding="utf-8-sig"))
            splits = [meta["splits"][split] for split in ("train", "val")]
            numbers = [meta["vocab_size"], *(n for part in splits for n in (part["tokens"], part.get("bytes", 0)))]
            if not all(type(n) is int and n >= 0 for n in numbers) or meta["dtype"] not in DTYPES:
                raise ValueError("vocab_size, tokens and bytes must be integers from 0 on, dtype uint16 or uint32")
            if not all(isinstance(text, str) for text in (meta["tokenizer"], *meta.get("chars", ()))):
                raise ValueError("tokenizer and each of chars must be text")
            end = meta.get("end_of_text")
            if end is not None and not (type(end) is int and 0 <= end < meta["vocab_size"]):
                raise ValueError(f"end_of_text must be a token id below vocab_size, not {end!r}")
            if meta["tokenizer"] == "chars" and len(meta["chars"]) != meta["vocab_size"]:
                raise ValueError("its chars are not as many as its vocab_size")
            [part["sha256"] for part in splits]
            if not 0 < meta["vocab_size"] <= 1 << 8 * np.dtype(meta["dtype"]).itemsize:
                raise ValueError(f"vocab_size {meta['vocab_size']} does not fit {meta['dtype']} token ids")
            if "tokenizer_file" in meta:
                [folder / meta["tokenizer_file"]["name"], meta["tokenizer_file"]["sha256"]]
            return {"tokenizer": meta["tokenizer"], **meta, "note": ""}
        path = folder / "meta.pkl"
        if path.is_file():
            meta = PlainUnpickler(io.BytesIO(path.read_bytes())).load()
            chars = [meta["itos"][i] for i in range(int(meta["vocab_size"]))]
            if not all(isinstance(char, str) for char in chars):
                raise ValueError("its itos must give strings")
            return {"tokenizer": "chars", "vocab_size": int(meta["vocab_size"]), "chars": chars, "dtype": "uint16"}
    except KeyError as error:
        raise UserError(f"{path} lacks {error}; prepare the data set again") from None
    except BROKEN as error:
        raise UserError(f"{path} is broken: {error or type(error).__name__}; prepare the data set again") from None
    note = f"{folder} has no meta.json: taken as uint16 tokens of GPT-2, like nanoGPT's openwebtext"
    return {**GPT2, "dtype": "uint16", "note": note}


def read_tokenizer(path, digest):
    """The text of a data set's tokenizer.json. Raises UserError if it is not the one that meta.json states."""
    if not path.is_file():
        raise UserError(f"{path} is missing, and the data set's meta.json names it; prepare the data set again")
    if sha256(path) != digest:
        raise UserError(f"{path} does not have the sha256 that its meta.json states; prepare the data set again")
    return path.read_text(encoding="utf-8")


class PlainUnpickler(pickle.Unpickler):
    """Admits numbers, strings and containers: a pickle may otherwise run any code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and only plain data is read")
