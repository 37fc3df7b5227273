"""Documents of a large text corpus, one after the other: files of one's own, or a data set of the Hugging Face hub.

Its files are listed and read as they are, one at a time: a download breaks off between files, not between data sets,
and a few documents cost one file. Form: .parquet with a text column, .jsonl or .json (one object a line, with a text),
.txt (one document a file); the last three also as .gz and .zst.
"""

import argparse
import codecs
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockwise import UserError

FORMS = re.compile(r"\.(parquet|jsonl|json|txt)(\.gz|\.zst)?$")
SPLIT_NAME = r"(^|[/._-]){}"  # of a file or of a folder above it: train-00000.parquet, c4-train.00000-of-01024.json.gz
CONVERTED = "refs/convert/parquet"  # the hub's own conversion of what is not in files that we read
TEXT_PER_BYTE = {".parquet": 1.8, ".gz": 2.7, ".zst": 3.0}  # of OpenWebText, of C4


@dataclass
class Source:
    """Where documents come from. files: {split: [(name, bytes, stamp)]}; path_of: a file's name -> its local path."""

    name: str
    revision: str | None
    files: dict
    path_of: Any

    def texts(self, split, max_docs=None):
        """The split's documents in order, the first max_docs."""
        names = (name for name, *_ in self.files[split])
        texts = itertools.chain.from_iterable(read_texts(self.path_of(name)) for name in names)
        return itertools.islice(texts, max_docs)

    def text_bytes(self, max_docs=None):
        """Roughly how much text there is."""
        files = itertools.chain.from_iterable(self.files.values())
        every = sum(size * TEXT_PER_BYTE.get(Path(name).suffix, 1) for name, size, _ in files)
        return int(min(every, 6000 * len(self.files) * max_docs) if max_docs else every)


def add_arguments(parser, name, repo, revision, splits):
    """The options that the scripts of large corpora share."""
    parser.add_argument("--repo", default=repo, help=f"data set of the hub (default: {repo})")
    parser.add_argument("--revision", default=revision, help="its commit, branch or tag (default: a fixed commit)")
    published = ", its files or folders named train* and validation*" if "validation" in splits else ""
    forms = ".parquet, .jsonl, .json, .txt"
    parser.add_argument("--source", type=some, help=f"instead: a file, or a folder{published}; {forms}")
    if "validation" in splits:
        parser.add_argument("--val_source", type=some, help="validation documents; all of --source is for training")
    parser.add_argument("--max_docs", type=positive, help="the first N documents (of each published split) only")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--shard_mb", type=number_up_to(1024), default=16, help="text in a shard (default: 16 MiB)")
    parser.add_argument("--name", default=name, help=f"of the data set (default: {name})")
    parser.add_argument("--data_dir", default=Path(__file__).parents[2] / "data", help="write to DATA_DIR/NAME")


def some(text):
    if not text:
        raise argparse.ArgumentTypeError("expected a file or a folder, got nothing")
    return text


def positive(text):
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, of at most 18 digits, got {text}")
    return int(text)


def number_up_to(most):
    def number(text):
        with suppress(ValueError):
            if text.isascii() and 0 < float(text) <= most:
                return float(text)
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most {most}, got {text}")

    return number


def find_source(args, splits, folder=None):
    """The Source that the options ask for. folder: of the hub's data set, where only that one counts."""
    if getattr(args, "val_source", None) and not args.source:
        raise UserError("--val_source needs --source, the training documents")
    if args.source:
        return local_source(args.source, splits, getattr(args, "val_source", None))
    return hub_source(args.repo, args.revision, splits, folder, args.max_docs)


def local_source(path, splits, val_path=None):
    """Files below `path`, in the order of their names. Raises UserError where a split has none."""
    path = Path(path).resolve()
    files = {"train": local_files(path)}
    if val_path:
        files["validation"] = local_files(Path(val_path).resolve())
    elif len(splits) > 1:
        top = path if path.is_dir() else path.parent
        inside = {os.path.relpath(name, top): (name, *more) for name, *more in files["train"]}
        files = {split: [inside[name] for name in files_of_split(inside, split)] for split in splits}
        for split in splits:
            if not files[split]:
                raise UserError(
                    f"{path}: no file or folder named {split}* in it: expected train* and validation*, or --val_source"
                )
    return Source(path.name, None, files, Path)


def local_files(path):
    """(path, bytes, time of change) of the files in a folder, or of the one."""
    if path.is_dir():
        inside = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if FORMS.search(p.name) and p.is_file())
        found = [path / name for name in inside if not re.search(r"(^|/)\.", name)]
    else:
        found = [path] if path.is_file() and FORMS.search(path.name) else []
    if not found:
        problem = "has no documents" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: expected .parquet, .jsonl, .json or .txt files (also .gz, .zst)")
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found]


def files_of_split(names, split):
    return [name for name in names if re.search(SPLIT_NAME.format(split), name)]


def hub_source(repo, revision, splits, folder=None, max_docs=None):
    """A data set of the hub at a commit, or, where that has no files that we read, in the hub's own conversion."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = hub.HfApi()
    try:
        for at in (revision, CONVERTED):
            commit = api.dataset_info(repo, revision=at, expand=["sha"]).sha
            sizes = {}
            with suppress(EntryNotFoundError):  # no such folder there
                for file in api.list_repo_tree(repo, folder, repo_type="dataset", revision=commit, recursive=True):
                    if isinstance(file, RepoFile) and FORMS.search(file.path):
                        sizes[file.path] = file.size
            files = {split: [(n, sizes[n], None) for n in files_of_split(sorted(sizes), split)] for split in splits}
            if all(files.values()):
                break
    except Exception as error:
        raise UserError(unreachable(repo, revision, folder, error)) from None
    missing = [split for split in splits if not files[split]]
    if missing:
        raise UserError(f"{repo} has no .parquet or .json files of {missing[0]} at {revision} or {CONVERTED}")
    if any("partial-" in name for part in files.values() for name, *_ in part):
        raise UserError(f"{repo} is converted only in part at {CONVERTED}: expected another --revision, or --source")

    def path_of(name):
        try:
            return Path(hub.hf_hub_download(repo, name, repo_type="dataset", revision=commit))
        except Exception as error:
            raise UserError(unreachable(repo, revision, folder, error)) from None

    source = Source(repo, commit, files, path_of)
    if max_docs is None:
        check_download_space(source)
    return source


def unreachable(repo, revision, folder, error):
    only = f" --include '{folder}/*'" if folder else ""
    return (
        f"{repo} at {revision} could not be fetched ({type(error).__name__}): where there is a network, run "
        f"hf download {repo} --repo-type=dataset --revision={revision}{only} --local-dir=DIR, "
        "bring DIR here and use --source=DIR (a download that breaks off goes on, from the files below HF_HOME)"
    )


def check_download_space(source):
    """State what is to be fetched, and raise UserError where it does not fit."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    at = {"repo_type": "dataset", "revision": source.revision}
    files = itertools.chain.from_iterable(source.files.values())
    todo = sum(n for name, n, _ in files if not isinstance(hub.try_to_load_from_cache(source.name, name, **at), str))
    free = shutil.disk_usage(cache).free
    print(f"{todo / 1e9:,.1f} GB to fetch into {cache} ({free / 1e9:,.1f} GB free; HF_HOME moves it)", flush=True)
    if todo > free:
        raise UserError(f"{cache} needs {todo / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free: HF_HOME moves it")


def read_texts(path):
    """The documents of one file. Raises UserError, naming the file and the place, for what cannot be read."""
    form, packed = FORMS.search(path.name).groups()
    try:
        if form == "parquet":
            yield from parquet_texts(path)
            return
        with open_packed(path, packed) as file:
            if form == "txt":
                yield decoded(file.read(), path)
                return
            for number, line in enumerate(file, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield json_text(decoded(line, f"{path}, line {number}"), f"{path}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def open_packed(path, packed):
    if packed == ".gz":
        return gzip.open(path)
    if packed == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def parquet_texts(path):
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise UserError(f"{path} has no column text: its columns are {', '.join(columns)}")
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                for data in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                    row += 1
                    if data is None:
                        raise UserError(f"{path}, row {row}: no text")
                    yield decoded(data, f"{path}, row {row}")
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no sound parquet file with a column of text: {error}") from None


def decoded(data, place):
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def json_text(line, place):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object with a text")
    if "text" not in record:
        raise UserError(f"{place}: no text: its columns are {', '.join(record)}")
    text = record["text"]
    if not isinstance(text, str):
        raise UserError(f"{place}: expected text as a string, got {type(text).__name__}")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise UserError(f"{place}: not UTF-8 text: half of a surrogate pair")
    return text


def held_out(texts, fraction, seed, max_docs=None):
    """("train" or "val", text), the choice by a hash of the document's number: the same for any max_docs.

    Document i is for validation if the first 8 bytes of SHA-256 of "SEED/I", big-endian, are below fraction * 2**64.
    Raises UserError if a split gets none: before the first document where max_docs is small enough to try.
    """

    def split_of(index):
        number = int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
        return "val" if number < fraction * 2**64 else "train"

    def check(splits, count):
        for split in {"train", "val"} - splits:
            raise UserError(
                f"none of {count} documents is for the {split} split: expected more of them, or another --val_fraction "
                f"(it is {fraction:g})"
            )

    if max_docs and max_docs <= 1_000_000:
        check(set(map(split_of, range(max_docs))), max_docs)
    splits, count = set(), 0
    for count, text in enumerate(texts, 1):
        splits.add(split := split_of(count - 1))
        yield split, text
    check(splits, count)


def published(source, max_docs):
    """("train" or "val", text), the splits as they were published."""
    for name, split in (("val", "validation"), ("train", "train")):
        for text in source.texts(split, max_docs):
            yield name, text
