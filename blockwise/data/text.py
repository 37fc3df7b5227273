"""A text as a data set: reading it, cutting off the validation part."""

import re
import urllib.request
from http.client import HTTPException
from pathlib import Path

from blockwise import UserError
from blockwise.data.writing import sole_writer, write_dataset

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
    with sole_writer(folder):
        ids = {split: tokenizer.encode(part) for split, part in split_text(text).items()}
        write_dataset(folder, ids, tokenizer.description, source)


def dataset_folder(data_dir, name):
    """Where a data set goes. Raises UserError for a name that is none, or that leads elsewhere."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"--name={name}: expected letters, digits, '_', '.' and '-'")
    return Path(data_dir) / name


def tokenizer_suffix(tokenizer):
    """What the default name of a data set adds: nothing for bytes, "_gpt2", "_bpe4096"."""
    return "" if tokenizer == "bytes" else "_" + Path(tokenizer).name.replace(":", "")
