"""Writing a data set in the format that loader.py reads: what data/*/prepare.py share."""

import hashlib
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
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


def dataset_folder(data_dir, name):
    """Where a data set goes. Raises UserError for a name that is none, or that leads elsewhere."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"--name={name}: expected letters, digits, '_', '.' and '-'")
    return Path(data_dir) / name


def tokenizer_suffix(tokenizer):
    """What the default name of a data set adds: nothing for bytes, "_gpt2", "_bpe4096"."""
    return "" if tokenizer == "bytes" else "_" + tokenizer.replace(":", "")


def write_dataset(folder, splits, tokenizer, source, **facts):
    """Write train.bin, val.bin and meta.json into `folder`; the same input gives the same bytes.

    splits: {"train": token ids, "val": token ids}, sequences or integer arrays, or iterators of such pieces, of which
    one at a time is in memory. tokenizer: its description, {"tokenizer": name, "vocab_size": n, ...}, whose "json"
    becomes tokenizer.json; source: where the text is from; facts: what else meta.json shall say.
    The files are complete before any is put in place. Raises UserError for an id outside the vocabulary, a vocabulary
    that uint16 cannot hold, an empty split, a folder that cannot be written.
    """
    if tokenizer["vocab_size"] > 65536:
        raise UserError(f"a vocabulary of {tokenizer['vocab_size']} does not fit uint16 token ids: at most 65536")
    folder = Path(folder)
    meta = {k: v for k, v in tokenizer.items() if k != "json"}
    contents = {}
    if "json" in tokenizer:
        contents["tokenizer.json"] = data = tokenizer["json"].encode()
        meta["tokenizer_file"] = {"name": "tokenizer.json", "sha256": hashlib.sha256(data).hexdigest()}
    meta |= {"dtype": "uint16", "source": source, **facts, "splits": {}}
    names = ["train.bin", "val.bin", *contents, "meta.json"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            meta["splits"][split] = write_ids(folder / f"{split}.bin.tmp", splits[split], tokenizer["vocab_size"])
            if not meta["splits"][split]["tokens"]:
                raise UserError(f"the {split} split of {source} is empty: expected more text")
        contents["meta.json"] = (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode()
        for name, data in contents.items():
            (folder / f"{name}.tmp").write_bytes(data)
        for name in names:
            os.replace(folder / f"{name}.tmp", folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    finally:
        for name in names:
            with suppress(OSError):
                (folder / f"{name}.tmp").unlink()
    for split, stated in meta["splits"].items():
        print(f"{folder / split}.bin: {stated['tokens']:,} tokens ({tokenizer['tokenizer']})")


def write_ids(path, ids, vocab_size):
    """Write token ids, a sequence or an iterator of sequences, as uint16; returns {"tokens": n, "sha256": hex}."""
    tokens, digest = 0, hashlib.sha256()
    with open(path, "wb") as file:
        for piece in ids if isinstance(ids, Iterator) else [ids]:
            piece = np.asarray(piece, dtype=np.int64)
            if len(piece) and not 0 <= piece.min() <= piece.max() < vocab_size:
                raise UserError(f"{path.stem}: token id outside the vocabulary of {vocab_size}")
            data = piece.astype("<u2").tobytes()
            file.write(data)
            digest.update(data)
            tokens += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"tokens": tokens, "sha256": digest.hexdigest()}
