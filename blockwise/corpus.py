"""Writing a data set in the format that loader.py reads: what data/*/prepare.py share."""

import hashlib
import json
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

import numpy as np

from blockwise import UserError

TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def split_text(text):
    """The last tenth of a text, counted in UTF-8 bytes, as validation: {"train": str, "val": str}."""
    data = text.encode()
    cut = len(data) * 9 // 10
    while cut < len(data) and data[cut] & 0xC0 == 0x80:  # inside a character
        cut += 1
    return {"train": data[:cut].decode(), "val": data[cut:].decode()}


def read_text(path):
    """A file's text, line ends as they are. Raises UserError if it is missing or not UTF-8."""
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def tiny_shakespeare(source=None):
    """Its text, from a local file or by download. Raises UserError if neither can be had."""
    if source is not None:
        return read_text(source)
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE, timeout=30) as answer:
            return answer.read().decode()
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        raise UserError(f"could not fetch {TINY_SHAKESPEARE} ({error}): bring the file and use --source=PATH") from None


def prepare_text(folder, text, tokenizer, source):
    """Split, tokenize (see tokenizer.Tokenizer) and write a text."""
    ids = {split: tokenizer.encode(part) for split, part in split_text(text).items()}
    write_dataset(folder, ids, tokenizer.description, source)


def write_dataset(folder, splits, tokenizer, source):
    """Write train.bin, val.bin and meta.json into `folder`; the same input gives the same bytes.

    splits: {"train": token ids, "val": token ids}, sequences or integer arrays.
    tokenizer: its description, {"tokenizer": name, "vocab_size": n, ...}; source: where the text is from.
    The three files are complete before any is put in place. Raises UserError for an id outside the vocabulary, a
    vocabulary that uint16 cannot hold, an empty split, a folder that cannot be written.
    """
    if tokenizer["vocab_size"] > 65536:
        raise UserError(f"a vocabulary of {tokenizer['vocab_size']} does not fit uint16 token ids: at most 65536")
    folder = Path(folder)
    meta = {**tokenizer, "dtype": "uint16", "source": source, "splits": {}}
    contents = {}
    for split in ("train", "val"):
        ids = np.asarray(splits[split], dtype=np.int64)
        if not len(ids):
            raise UserError(f"the {split} split of {source} is empty: expected more text")
        if ids.min() < 0 or ids.max() >= tokenizer["vocab_size"]:
            raise UserError(f"{source}: token id outside the vocabulary of {tokenizer['vocab_size']}")
        contents[f"{split}.bin"] = data = ids.astype("<u2").tobytes()
        meta["splits"][split] = {"tokens": len(ids), "sha256": hashlib.sha256(data).hexdigest()}
    contents["meta.json"] = (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            (folder / f"{name}.tmp").write_bytes(data)
        for name in contents:
            os.replace(folder / f"{name}.tmp", folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    for split, stated in meta["splits"].items():
        print(f"{folder / split}.bin: {stated['tokens']:,} tokens ({tokenizer['tokenizer']})")
