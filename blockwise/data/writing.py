"""Writing a data set in the format that loader.py reads."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from blockwise import UserError, print0
from blockwise.files import DTYPES, FolderLock, cause, replace, sync

WARN, REFUSE = 0.001, 0.1  # shares of a text that a tokenizer cannot spell


def sole_writer(folder):
    """Exclusive right to write a data set."""
    return FolderLock(folder, in_use="is being prepared by another process: wait, or choose another --name")


def write_dataset(folder, splits, tokenizer, source, text_bytes=None, **facts):
    """Write train.bin, val.bin and meta.json into `folder`; the same input gives the same bytes.

    splits: {"train": token ids, "val": token ids}, sequences or integer arrays, or iterators of such pieces, of which
    one at a time is in memory. tokenizer: its description, {"tokenizer": name, "vocab_size": n, ...}, whose "json"
    becomes tokenizer.json; source: where the text is from; facts: what else meta.json says.
    text_bytes: {"train": n, "val": n}, of the texts in UTF-8, where it is known: losses per byte need it.
    The files are complete before any is put in place. Raises UserError for an id outside the vocabulary, an empty
    split, a folder that cannot be written.
    """
    folder = Path(folder)
    meta = {k: v for k, v in tokenizer.items() if k != "json"}
    contents = {}
    if "json" in tokenizer:
        contents["tokenizer.json"] = data = tokenizer["json"].encode()
        meta["tokenizer_file"] = {"name": "tokenizer.json", "sha256": hashlib.sha256(data).hexdigest()}
    meta |= {"dtype": dtype_of(tokenizer["vocab_size"]), "source": source, **facts, "splits": {}}
    names = ["train.bin", "val.bin", *contents, "meta.json"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            meta["splits"][split] = write_ids(folder / f"{split}.bin.tmp", splits[split], tokenizer["vocab_size"])
            if not meta["splits"][split]["tokens"]:
                raise UserError(f"the {split} split of {source} is empty: expected more text")
            if text_bytes:
                meta["splits"][split]["bytes"] = text_bytes[split]
        contents["meta.json"] = (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode()
        for name, data in contents.items():
            (folder / f"{name}.tmp").write_bytes(data)
        for name in names:
            replace(folder / f"{name}.tmp", folder / name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {cause(error)}") from None
    finally:
        for name in names:
            with suppress(OSError):
                (folder / f"{name}.tmp").unlink()
    for split, stated in meta["splits"].items():
        print0(f"{folder / split}.bin: {stated['tokens']:,} tokens ({tokenizer['tokenizer']})")


def dtype_of(vocab_size):
    """The smallest that holds every id. Raises UserError where none does."""
    if vocab_size > 1 << 32:
        raise UserError(f"a vocabulary of {vocab_size} does not fit uint32 token ids: at most {1 << 32}")
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_ids(path, ids, vocab_size):
    """Write token ids, a sequence or an iterator of sequences; returns {"tokens": n, "sha256": hex}."""
    tokens, digest, dtype = 0, hashlib.sha256(), DTYPES[dtype_of(vocab_size)]
    with open(path, "wb") as file:
        for piece in ids if isinstance(ids, Iterator) else [ids]:
            piece = np.asarray(piece, dtype=np.int64)
            if len(piece) and not 0 <= piece.min() <= piece.max() < vocab_size:
                raise UserError(f"{path.stem}: token id outside the vocabulary of {vocab_size}")
            data = piece.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            tokens += len(piece)
        file.flush()
        sync(file.fileno())
    return {"tokens": tokens, "sha256": digest.hexdigest()}


def check_losses(tokenizer, tokens, unknown, characters, lost):
    """Print how much of the text the tokenizer cannot spell, and warn; raise UserError above a tenth.

    Not at the first one: T5's own vocabulary drops line ends, and the published runs on C4 have it so.
    """
    if tokenizer.lossless:
        print0(f"{tokenizer.name} spells any text: nothing is lost")
        return
    shares = unknown / max(tokens, 1), lost / max(characters, 1)
    text = f"{tokenizer.name}: {shares[0]:.2%} of tokens are unknown, {shares[1]:.2%} of characters do not decode back"
    if max(shares) > REFUSE:
        raise UserError(f"{text}: this tokenizer cannot spell this text, expected another one")
    print0(f"WARNING: {text}" if max(shares) > WARN else text)
