"""The files of a corpus: of one's own, or of a data set of the Hugging Face hub; which of them are for what."""

import itertools
import json
import os
import re
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockwise import UserError, print0
from blockwise.data.reading import EXPECTED, documents, form_of
from blockwise.files import free_space, sha256

CONVERTED = "refs/convert/parquet"  # the hub's own conversion of what is not in files that we read
# Of OpenWebText, of C4
TEXT_PER_BYTE = {"parquet": 1.8, "gz": 2.7, "gzip": 2.7, "bz2": 3.3, "xz": 3.5, "zst": 3.0, "zstd": 3.0}
SPLIT_NAMES = {  # of a file or of a folder above it: train-00000.parquet, c4-train.00000-of-01024.json.gz
    "train": re.compile(r"(?:^|[._-])train", re.IGNORECASE),
    "validation": re.compile(r"(?:^|[._-])(?:validation|(?:valid|val|dev)(?=[._\d-]|$))", re.IGNORECASE),
    "test": re.compile(r"(?:^|[._-])test(?=[._\d-]|$)", re.IGNORECASE),
}
VALIDATION = ("validation", "valid", "val", "dev")
ARCHIVES = re.compile(r"\.(zip|tar|tgz|7z|rar|lz4|lz|br|snappy)$", re.IGNORECASE)


@dataclass
class Source:
    """Where documents come from. files: {split: [(name, bytes, stamp)]}; path_of: a file's name -> its local path."""

    name: str
    revision: str | None
    files: dict
    path_of: Any
    column: str = "text"

    def documents(self, split, file=0, row=0):
        """(file, row, text, problem) of a split's rows in order, after that row of that file; see reading.documents."""
        for number, (name, *_) in enumerate(self.files[split][file:], file):
            rows = documents(self.path_of(name), name, self.column, row if number == file else 0)
            for at, text, problem in rows:
                yield number, at, text, problem

    def text_bytes(self, max_docs=None):
        """Roughly how much text there is."""
        every = 0
        for name, size, _ in itertools.chain.from_iterable(self.files.values()):
            form, packed = form_of(name)
            every += size * TEXT_PER_BYTE.get(packed or form, 1)
        return int(min(every, 6000 * len(self.files) * max_docs) if max_docs else every)


# Files of one's own


def local_source(path, splits=None, val_path=None, by_name=False, config=None, hold_out=False):
    """Files below `path`, in the order of their names. Raises UserError where a split has none, or two have one file.

    splits: of whom the second is for validation. One alone takes every file, or with `by_name` those whose name, or the
    deepest folder that does so, states it, if names state any. None goes by the names, and raises UserError where they
    explain only some of the files, or no training; with `hold_out` (documents are to be chosen) it then takes all.
    config: one that the folder's README.md describes, as a clone of a data set of the hub has it.
    """
    path = Path(os.path.abspath(path))
    if config:
        groups = {split: [file_at(name) for name in names] for split, names in described(str(path), config).items()}
        read, unread = [file for part in groups.values() for file in part], []
    else:
        read, unread = local_files(path)
    if val_path:
        validation, _ = local_files(Path(os.path.abspath(val_path)))
        inside = {os.path.realpath(name) for name, *_ in validation}
        files = {"train": [file for file in read if os.path.realpath(file[0]) not in inside], "validation": validation}
        if not files["train"]:
            raise UserError(f"every file of {path} is in --val_source={val_path}, too: expected others for training")
    elif splits and len(splits) == 1 and not by_name:
        files = {splits[0]: read}
    else:
        if not config:
            groups = files_by_split(read, path if path.is_dir() else path.parent)
        if not splits and set(groups) != {None} and (None in groups or "train" not in groups):
            groups = {"train": explained(path, groups, hold_out)}
        splits = splits or [split for split in ("train", "validation")[: 1 if hold_out else 2] if groups.get(split)]
        splits = splits or ["train"]
        if set(groups) == {None} and len(splits) == 1:
            groups = {splits[0]: read}
        for split in splits:
            if not groups.get(split):
                raise UserError(
                    f"{path}: no file or folder named {split}* in it: expected train* and validation*, or --val_source"
                )
        unread += [name for split, part in groups.items() if split not in splits for name, *_ in part]
        files = {split: groups[split] for split in splits}
    refuse_overlap(files)
    print_unread(path, unread)
    return Source(path.name, None, files, Path)


def explained(path, groups, hold_out):
    """All files, where their names leave open what some are for and `hold_out` settles it; else raises UserError."""
    names = {split: [os.path.basename(name) for name, *_ in part] for split, part in groups.items()}
    stated = ", ".join(f"{part[0]} ({split})" for split, part in names.items() if split)
    if not hold_out:
        open_ = f", that of {names[None][0]} says nothing" if None in names else ""
        raise UserError(
            f"{path}: names say what some files are for, {stated}{open_}: expected --val_fraction=X to take them all, "
            "or --split=NAME [--val_split=NAME] to take those of a name alone"
        )
    print0(f"taken whatever their names say: all files of {path}, also {stated}")
    return [file for part in groups.values() for file in part]


def file_at(name):
    about = os.stat(name)
    return name, about.st_size, about.st_mtime_ns


def local_files(path):
    """[(path, bytes, time of change)] of the files in a folder, or of the one; and the paths that are not read."""
    if not path.is_dir():
        names, unread = [str(path)] if path.is_file() and form_of(path.name) else [], []
    else:
        names, unread = files_below(path)
    if not names:
        problem = "has no documents" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: {EXPECTED}")
    return [file_at(name) for name in names], unread


def files_below(folder):
    """Paths that are read, in the order of their names below the folder, and those that are not.

    Links are followed; what is reached twice is read once. Raises UserError for documents that would be left out.
    """
    names, unread, seen = [], [], {os.path.realpath(folder)}
    for top, folders, files in os.walk(folder, followlinks=True):
        if {"state.json", "dataset_info.json"} <= set(files):  # Dataset.save_to_disk, which may also hold caches
            saved = saved_files(top)
            unread += [os.path.join(top, name) for name in files if name not in saved]
            files = saved
        files = [name for name in files if name != "dataset_dict.json"]  # DatasetDict.save_to_disk
        hidden = [name for name in (*folders, *files) if name.startswith(".") and name != ".lock"]
        unread += [os.path.join(top, name) for name in hidden]
        real = {name: os.path.realpath(os.path.join(top, name)) for name in folders if name not in hidden}
        folders[:] = [name for name in sorted(real) if real[name] not in seen and not seen.add(real[name])]
        unread += [os.path.join(top, name) for name in real if name not in folders]
        names += [os.path.join(top, name) for name in files if name not in hidden]
    names.sort(key=lambda name: Path(name).relative_to(folder).as_posix())
    read, seen = [], set()
    for name in names:
        if form_of(name) and os.path.isfile(name):
            again = os.path.realpath(name) in seen
            seen.add(os.path.realpath(name))
            (unread if again else read).append(name)
        elif ARCHIVES.search(name) or re.search(r"\.(jsonl|ndjson|parquet|json|arrow|csv|tsv)\.\w{1,6}$", name, re.I):
            raise UserError(f"{name} is packed in a way that is not read: unpack it, or take it away; {EXPECTED}")
        else:
            unread.append(name)
    return read, unread


def saved_files(folder):
    """The files that a folder written by `datasets`' save_to_disk states. Raises UserError if it states none."""
    path = os.path.join(folder, "state.json")
    try:
        with open(path, encoding="utf-8") as file:
            return [stated["filename"] for stated in json.load(file)["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a valid state of save_to_disk: {type(error).__name__}: {error}") from None


def files_by_split(files, top):
    """{split or None: files}, by the name of the file, else of the deepest folder that names a split."""
    by_split = defaultdict(list)
    for file in files:
        by_split[split_named(os.path.relpath(file[0], top), file[0])].append(file)
    return by_split


def split_named(name, path):
    for part in reversed(Path(name).parts):
        named = [split for split, pattern in SPLIT_NAMES.items() if pattern.search(part)]
        if named[1:]:
            raise UserError(
                f"{path}: cannot tell whether this is {' or '.join(named)} data: rename it, or use --val_source"
            )
        if named:
            return named[0]
    return None


def refuse_overlap(files):
    """Raise UserError if a file, or a copy of it, is in two splits: validation would be on what was learnt."""
    by_size = defaultdict(list)
    for split, part in files.items():
        for name, size, _ in part:
            by_size[size].append((split, name))
    for same in by_size.values():
        if len({split for split, _ in same}) > 1:
            hashes = defaultdict(list)
            for split, name in same:
                hashes[sha256(name)].append((split, name))
            for (split, name), *others in hashes.values():
                for other_split, other in others:
                    if other_split != split:
                        raise UserError(f"{name} ({split}) and {other} ({other_split}) are the same")


def print_unread(path, unread):
    if unread:
        names = [os.path.relpath(name, path) for name in sorted(unread)[:5]]
        more = f" and {len(unread) - 5} more" if unread[5:] else ""
        print0(f"not read: {len(unread)} of {path} ({', '.join(names)}{more})")


# Data sets of the hub


def hub_source(repo, revision, splits, config=None, max_docs=None):
    """A data set of the hub at a commit, or, where that has no files that we read, in the hub's own conversion.

    splits: their names there, the second for validation (None: train, and validation if there is one); config: which
    of several data sets of the repository.
    """
    import huggingface_hub as hub

    api = hub.HfApi()
    for at in dict.fromkeys((revision, CONVERTED)):
        with reached(repo, revision, config):
            commit = api.dataset_info(repo, revision=at, expand=["sha"]).sha
            groups = described(repo, config, commit)
        wanted = splits or ["train", *[split for split in VALIDATION if split in groups][:1]]
        missing = [split for split in wanted if not groups.get(split)]
        if not missing:
            break
    if missing and groups:
        raise UserError(f"{repo} has no split {missing[0]}: expected one of {', '.join(groups)}")
    if missing:
        raise UserError(f"{repo} has no .parquet or .json files of {missing[0]} at {revision} or {CONVERTED}")
    names = [name for split in wanted for name in groups[split]]
    if any("partial-" in name for name in names):
        raise UserError(f"{repo} is converted only in part at {CONVERTED}: expected another --revision, or --source")
    for name in names:
        if not form_of(name):
            raise UserError(f"{repo}: {name} holds no text that we read: {EXPECTED}")
    with reached(repo, revision, config):
        infos = api.get_paths_info(repo, names, repo_type="dataset", revision=commit)
        sizes = {info.path: info.size for info in infos}

    def path_of(name):
        # Fetched whole, not streamed over the network: kept for the next time, and a line that breaks costs one file
        with reached(repo, revision, config):
            return Path(hub.hf_hub_download(repo, name, repo_type="dataset", revision=commit))

    source = Source(repo, commit, {split: [(n, sizes[n], None) for n in groups[split]] for split in wanted}, path_of)
    if others := [split for split in groups if split not in wanted]:
        print0(f"not read: the splits {', '.join(others)} of {repo}")
    if max_docs is None:
        check_download_space(source)
    return source


@contextmanager
def reached(repo, revision, config):
    """Inside, whatever goes wrong becomes a UserError that names the way around."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        include = f" --include '*{config}*/*'" if config else ""
        raise UserError(
            f"{repo} at {revision} could not be fetched ({type(error).__name__}): where there is a network, run "
            f"hf download {repo} --repo-type=dataset --revision={revision}{include} --local-dir=DIR, "
            "bring DIR here and use --source=DIR (an interrupted download resumes from the files below HF_HOME)"
        ) from None


def import_datasets():
    """Without torch, which takes seconds and of which nothing is needed here, and without messages."""
    before = os.environ.get("USE_TORCH")
    os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    finally:
        os.environ.pop("USE_TORCH")
        if before is not None:
            os.environ["USE_TORCH"] = before
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # an error is one line, and we write it
    return datasets


def described(repo, config, revision=None):
    """{split: names of files}, as `datasets` finds them: by the data set's description, else by their names."""
    datasets = import_datasets()
    try:
        builder = datasets.load_dataset_builder(repo, name=config, revision=revision)
    except (FileNotFoundError, RuntimeError):  # no files that it reads; a script, which it does not run
        return {}
    except ValueError as error:
        raise UserError(f"{repo}: {' '.join(str(error).split())} (--config=NAME)") from None
    at = f"hf://datasets/{repo}@{revision}/"
    groups = builder.config.data_files or {}
    return {str(split): [str(name).removeprefix(at) for name in names] for split, names in groups.items()}


def check_download_space(source):
    """State what is to be fetched, and raise UserError where it does not fit."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    at = {"repo_type": "dataset", "revision": source.revision}
    files = itertools.chain.from_iterable(source.files.values())
    todo = sum(n for name, n, _ in files if not isinstance(hub.try_to_load_from_cache(source.name, name, **at), str))
    free = free_space(cache)
    left = "unknown" if free is None else f"{free / 1e9:,.1f} GB"
    print0(f"{todo / 1e9:,.1f} GB to fetch into {cache} ({left} free; HF_HOME moves it)")
    if free is not None and todo > free:
        raise UserError(f"{cache} needs {todo / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free: HF_HOME moves it")
