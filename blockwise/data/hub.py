"""From a corpus to a data set: the options, which documents are for validation, the order of things."""

import argparse
import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from blockwise import UserError
from blockwise.data.shards import write_documents
from blockwise.data.sources import Source, hub_source, local_source
from blockwise.data.text import dataset_folder, first_bytes, tokenizer_suffix
from blockwise.tokenizer import TOKENIZERS, tokenizer_named

VAL_FRACTION = 0.01


def add_arguments(parser, name=None, repo=None, revision="main", splits=None, val_fraction=None):
    """The options that all corpora share. repo: None takes it from the command line; splits: published ones."""
    parser.epilog = "Killed at any moment, the same command resumes from the finished shards."
    if repo is None:
        parser.add_argument("source", metavar="REPO_OR_PATH", help="data set of the hub, or a local folder or file")
        parser.add_argument("--config", help="one of the data sets in the repository, like sample-10BT")
        parser.add_argument("--split", help="split for training (default: train)")
        parser.add_argument("--val_split", help="split for validation (default: validation, if there is one)")
    else:
        parser.add_argument("--repo", default=repo, help=f"data set of the hub (default: {repo})")
        published = ", its files or folders named train* and validation*" if splits[1:] else ""
        parser.add_argument("--source", type=some, help=f"local file or folder instead{published}")
    if repo is None or splits[1:]:
        parser.add_argument("--val_source", type=some, help="validation documents; all others are for training")
    if repo is None or not splits[1:]:
        default = f"{val_fraction or VAL_FRACTION}{'' if repo else ', where no validation is published'}"
        help = f"fraction of the documents for validation (default: {default})"
        parser.add_argument("--val_fraction", type=number_up_to(1), default=val_fraction, help=help)
        parser.add_argument("--seed", type=int, default=2357, help="random seed of the choice for validation")
    parser.add_argument("--revision", default=revision, help=f"commit, branch or tag of the hub (default: {revision})")
    parser.add_argument("--text_column", default="text", help="column of the text; a.b is nested (default: text)")
    parser.add_argument("--max_docs", type=positive, help="number of documents (of each published split) to stop after")
    parser.add_argument("--max_tokens", type=positive, help="number of training tokens to stop after")
    parser.add_argument("--bad_rows", choices=["stop", "skip"], default="stop", help="for rows without text")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--shard_mb", type=number_up_to(1024), default=16, help="text in a shard (default: 16 MiB)")
    parser.add_argument("--name", default=name, help=f"name of the data set (default: {name or 'by the source'})")
    parser.add_argument("--data_dir", default=Path(__file__).parents[2] / "data", help="write to DATA_DIR/NAME")


def add_tokenizer(parser, default="gpt2"):
    parser.add_argument("--tokenizer", default=default, help=f"{TOKENIZERS} (default: {default})")


def prepare_corpus(parser, name, repo, revision="main", splits=None, val_fraction=None, config=None, article=None):
    """The command of a corpus with a script of its own; see `add_arguments` and `prepare`."""
    splits = splits or ["train"]
    add_arguments(parser, name, repo, revision, splits, val_fraction)
    add_tokenizer(parser)
    prepare(parser.parse_args(), splits, config, article=article)


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


def prepare(args, splits=None, config=None, tokenizer=None, article=None):
    """Read, tokenize and write what the options ask for; see data/hub/prepare.py.

    splits, config: of a corpus with a script of its own; tokenizer: None makes the one that args.tokenizer names;
    article: pattern of the row that begins a document, where the rows are its lines.
    """
    if args.name is not None:
        dataset_folder(args.data_dir, args.name)  # a bad name is found before anything is read
    make = None if tokenizer else quick_tokenizer(args.tokenizer)
    source = find_source(args, splits, config)
    source.column = args.text_column
    name = args.name or default_name(source.name, args.tokenizer)
    documents = Documents(source, args.bad_rows == "skip", args.max_docs, article)
    settings = {"max_docs": args.max_docs}
    if len(source.files) == 1:
        documents.hold_out(args.val_fraction or VAL_FRACTION, args.seed)
        settings |= {"seed": args.seed, "val_fraction": args.val_fraction or VAL_FRACTION}
    # Only where they say something: shards of an earlier version are found again, and meta.json stays short
    others = {"max_tokens": args.max_tokens, "text_column": args.text_column, "bad_rows": args.bad_rows}
    plain = {"max_tokens": None, "text_column": "text", "bad_rows": "stop"}
    settings |= {key: value for key, value in others.items() if value != plain[key]}
    tokenizer = tokenizer or make or trained(args.tokenizer, documents)
    folder = dataset_folder(args.data_dir, name)
    write_documents(folder, documents, tokenizer, source, settings, args.workers, args.shard_mb)


def quick_tokenizer(word):
    """The tokenizer, unless it must be trained first. Raises UserError for one that does not end documents."""
    if word.startswith("bpe:"):
        return None
    tokenizer = tokenizer_named(word, "", end_of_text=True)
    if tokenizer.end_of_text is None:
        raise UserError(f"{word} has no end-of-text token, which follows every document: expected another tokenizer")
    return tokenizer


def trained(word, documents):
    """A BPE of the first documents for training."""
    texts = (text for split, text in documents.again() if split == "train")
    return tokenizer_named(word, first_bytes(texts), end_of_text=True)


def default_name(source, tokenizer):
    """FineWeb-Edu of HuggingFaceFW/fineweb-edu, by bytes: fineweb-edu_bytes; GPT-2's tokenizer adds nothing."""
    base = re.sub(r"[^\w.-]", "_", Path(source).name.split(".")[0] if "." in source else Path(source).name)
    return base + {"gpt2": "", "bytes": "_bytes"}.get(tokenizer, tokenizer_suffix(tokenizer))


def find_source(args, splits, config):
    """The Source that the options ask for. Its first split is for training, a second one for validation."""
    val_source = getattr(args, "val_source", None)
    if val_source and not args.source:
        raise UserError("--val_source needs --source, the training documents")
    if splits is not None:
        if args.source:
            return local_source(args.source, splits, val_source)
        return hub_source(args.repo, args.revision, splits, config, args.max_docs or args.max_tokens)
    if args.val_fraction and (args.val_split or val_source):
        raise UserError("--val_fraction with --val_split or --val_source: expected one of them")
    if args.split or args.val_split:
        splits = [args.split or "train", *([args.val_split] if args.val_split else [])]
        if len(set(splits)) < len(splits):
            raise UserError(f"--val_split={args.val_split} is the split for training, too: expected another")
    if Path(args.source).exists():
        return local_source(args.source, splits, val_source, True, args.config, bool(args.val_fraction))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", args.source):
        raise UserError(f"{args.source} does not exist: expected a folder, a file, or OWNER/NAME of the hub")
    splits = splits or (["train"] if args.val_fraction else None)
    return hub_source(args.source, args.revision, splits, args.config, args.max_docs or args.max_tokens)


def choice(fraction, seed):
    """Split of the document of a number, by a hash of it: the same for any max_docs.

    Document i is for validation if the first 8 bytes of SHA-256 of "SEED/I", big-endian, are below fraction * 2**64.
    """

    def split_of(index):
        number = int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
        return "val" if number < fraction * 2**64 else "train"

    return split_of


@dataclass
class Documents:
    """("train" or "val", text) of all documents in order, validation first where it is published.

    position: behind the document that was given last; set it to one from before, the next iteration starts there.
    Raises UserError for a row without text, unless they are skipped, and if one split gets none of the documents.
    """

    source: Source
    skip: bool = False
    max_docs: int | None = None
    article: str | None = None
    split_of: object = None
    position: dict = field(default_factory=lambda: {"part": 0, "file": 0, "row": 0, "index": 0, "skipped": 0})

    def hold_out(self, fraction, seed):
        """Choose documents for validation. Raises UserError if none would be, where max_docs is small enough to try."""
        self.split_of, self.fraction = choice(fraction, seed), fraction
        if self.max_docs and self.max_docs <= 1_000_000:
            self.check(set(map(self.split_of, range(self.max_docs))), self.max_docs)

    def check(self, splits, count):
        for split in {"train", "val"} - splits:
            raise UserError(
                f"none of {count} documents is for the {split} split: expected more of them, or another --val_fraction "
                f"(it is {self.fraction:g})"
            )

    def again(self):
        """All of them from the first one, whatever the position."""
        return iter(Documents(self.source, self.skip, self.max_docs, self.article, self.split_of))

    def __iter__(self):
        parts = list(self.source.files)[::-1]
        named = ["val", "train"][-len(parts) :]
        for part in range(self.position["part"], len(parts)):
            if part != self.position["part"]:
                self.position |= {"part": part, "file": 0, "row": 0, "index": 0}
            for text in self.texts(parts[part]):
                split = self.split_of(self.position["index"]) if self.split_of else named[part]
                self.position["index"] += 1
                self.position[split] = True
                yield split, text
        if self.split_of:
            self.check({"train", "val"} & self.position.keys(), self.position["index"])

    def texts(self, split):
        rows = self.source.documents(split, self.position["file"], self.position["row"])
        first_problem = None
        for file, row, text, problem in articles(rows, self.article) if self.article else rows:
            if self.max_docs and self.position["index"] >= self.max_docs:
                return
            if problem and not self.skip:
                raise UserError(problem)
            if problem:
                first_problem = first_problem or problem
                self.position["skipped"] += 1
            else:
                self.position |= {"file": file, "row": row}
                yield text
        if first_problem and not self.position["index"]:
            raise UserError(f"every row is bad: {first_problem}")


def articles(rows, heading):
    """Rows that are the lines of articles, as those articles: each begins with a row that matches `heading`."""
    lines, at = [], None
    for file, row, text, problem in rows:
        if problem:
            yield file, row, text, problem
            continue
        if re.match(heading, text) and "".join(lines).strip():
            yield *at, "".join(lines), None
            lines = []
        lines.append(text)
        at = (file, row)
    if lines:
        yield *at, "".join(lines), None
