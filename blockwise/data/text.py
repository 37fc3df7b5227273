"""A text as a data set: reading it piece by piece, cutting off the validation part, tokenizing."""

import codecs
import io
import re
import urllib.request
from collections import Counter
from http.client import HTTPException
from pathlib import Path

from blockwise import UserError, print0
from blockwise.data.writing import check_losses, sole_writer, write_dataset
from blockwise.tokenizer import LINE_END, TOKENIZERS, tokenizer_named

TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PIECE = 1 << 20  # characters of a text that are in memory at a time
BPE_BYTES = 50_000_000  # of text that a BPE is trained on: more changes few merges, and takes minutes and gigabytes
BOM = "\ufeff"


def split_text(text):
    """The last tenth of a text, counted in UTF-8 bytes, as validation: {"train": str, "val": str}."""
    return {split: "".join(part) for split, part in parts_of([text], len(text.encode())).items()}


def parts_of(pieces, size):
    """The same of a text in pieces, of `size` bytes, as iterators: {"train": of str, "val": of str}."""
    cut = size * 9 // 10

    def part(is_val):
        begin = 0
        for piece in pieces:
            data = piece.encode()
            at = min(max(cut - begin, 0), len(data))
            while 0 < at < len(data) and data[at] & 0xC0 == 0x80:  # inside a character
                at += 1
            chosen = data[at:] if is_val else data[:at]
            if chosen:
                yield chosen.decode()
            begin += len(data)

    return {"train": part(False), "val": part(True)}


def read_text(path):
    """A file's text without a byte order mark, line ends as they are. Raises UserError if missing or not UTF-8."""
    return "".join(decoded(path, io.BytesIO(read_bytes(path)))).removeprefix(BOM)


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def decoded(path, file):
    """The text of a file in pieces. Raises UserError, naming the place, where it is not UTF-8."""
    decoder, begin = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        data = file.read(PIECE)
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = f"{error.reason} at byte {begin - pending + error.start}"
            raise UserError(f"{path} is not UTF-8 text: {place}") from None
        if not data:
            return
        begin += len(data)


class TextFiles:
    """Text files, one behind the other, each ending in a line end, without the byte order marks at line beginnings.

    Iterating gives pieces of about PIECE characters, cut where a word ends for GPT-2's tokenizer and those made like
    it; as often as wanted. Raises UserError for what is missing or not UTF-8. size: bytes in all.
    """

    def __init__(self, paths):
        # A pipe can be read only once
        self.files = [(path, None if Path(path).is_file() else read_bytes(path)) for path in paths]
        self.size = sum(len(piece.encode()) for piece in self)

    def __iter__(self):
        for path, content in self.files:
            try:
                with io.BytesIO(content) if content is not None else open(path, "rb") as file:
                    yield from pieces_of(decoded(path, file))
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from None

    def parts(self):
        return parts_of(self, self.size)


def pieces_of(texts):
    """One file's text, cut at ends of words."""
    pending, before = "", "\n"  # before: the last character that was given
    for text in texts:
        pending += text
        cut = last_word_end(pending) if len(pending) >= PIECE else 0
        if cut:
            yield without_marks(pending[:cut], before)
            pending, before = pending[cut:], pending[cut - 1]
    pending = without_marks(pending, before)
    yield pending if pending.endswith("\n") else pending + "\n"


def last_word_end(text):
    """Where the last match of LINE_END is, 0 if there is none."""
    end = len(text)
    while (end := text.rfind("\n", 0, end)) > 0:
        match = LINE_END.search(text, max(end - 2, 0), end + 1)
        if match and match.start():
            return match.start()
    return 0


def without_marks(text, before):
    return (before + text).replace("\n" + BOM, "\n")[1:]


def tiny_shakespeare(source=None):
    """Its text, from a local file or by download. Raises UserError if neither can be had."""
    if source is not None:
        return read_text(source)
    try:
        with urllib.request.urlopen(TINY_SHAKESPEARE, timeout=30) as answer:
            return answer.read().decode()
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        raise UserError(f"could not fetch {TINY_SHAKESPEARE} ({error}): bring the file and use --source=PATH") from None


def prepare_corpus(parser, name, read, source):
    """The command of a corpus with a script of its own. read: a function that returns its text."""
    parser.add_argument("--tokenizer", default="bytes", help=TOKENIZERS)
    parser.add_argument("--name", help=f"of the data set (default: {name}, {name}_gpt2, {name}_bpe4096)")
    parser.add_argument("--data_dir", default=Path(__file__).parents[2] / "data", help="write to DATA_DIR/NAME")
    args = parser.parse_args()
    folder = dataset_folder(args.data_dir, args.name or name + tokenizer_suffix(args.tokenizer))
    text = read()
    prepare_text(folder, text, tokenizer_named(args.tokenizer, split_text(text)["train"]), source)


def prepare_text(folder, text, tokenizer, source):
    """Split, tokenize (see tokenizer.Tokenizer) and write a text."""
    write_parts(folder, {split: [part] for split, part in split_text(text).items()}, tokenizer, source)


def write_parts(folder, parts, tokenizer, source):
    """Tokenize and write {"train": pieces of text, "val": pieces of text}, one piece at a time.

    Where the tokenizer would not give the tokens of the whole (see Tokenizer.by_line), all pieces at once. Raises
    UserError as write_dataset does, and where the tokenizer cannot spell the text.
    """
    counts, sizes = Counter(), Counter()

    def encoded(split):
        pieces = parts[split] if tokenizer.by_line else ["".join(parts[split])]
        for piece in pieces:
            ids = tokenizer.encode(piece)
            unknown, lost = tokenizer.losses(piece, ids)
            counts.update(tokens=len(ids), characters=len(piece), unknown=unknown, lost=lost)
            sizes[split] += len(piece.encode())
            yield ids
        if split == "val":  # before anything is put in place
            check_losses(tokenizer, counts["tokens"], counts["unknown"], counts["characters"], counts["lost"])

    with sole_writer(folder):
        ids = {split: encoded(split) for split in ("train", "val")}
        write_dataset(folder, ids, tokenizer.description, source, sizes)
    for split in ("train", "val"):
        print0(f"{split}: {sizes[split]:,} bytes of text")


def first_bytes(texts, limit=BPE_BYTES):
    """The texts until they have `limit` bytes."""
    size = 0
    for text in texts:
        yield text
        size += len(text.encode())
        if size >= limit:
            return


def dataset_folder(data_dir, name):
    """Where a data set goes. Raises UserError for a name that is none, or that leads elsewhere."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"--name={name}: expected letters, digits, '_', '.' and '-'")
    return Path(data_dir) / name


def tokenizer_suffix(tokenizer):
    """What the default name of a data set adds: nothing for bytes, "_gpt2", "_bpe4096"."""
    return "" if tokenizer == "bytes" else "_" + Path(tokenizer).name.replace(":", "")
