"""Tokenizers by description: a plain dict, {"tokenizer": name, "vocab_size": n, ...}, that checkpoints carry along.

A trained one has the whole text of its tokenizer.json under "json", so that sampling needs no data.
"""

import codecs
import json
import re
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from blockwise import UserError, print0
from blockwise.files import GPT2

BYTES = {"tokenizer": "bytes", "vocab_size": 256}
TOKENIZERS = "bytes, gpt2, bpe:N (trained on the training part), or a folder with a tokenizer.json"
LONGEST = 1000  # characters of a run that a BPE is trained on in one piece
LONG_RUN = re.compile(rf"\S{{{LONGEST + 1},}}|\s{{{LONGEST + 1},}}")
RENAMED = "\U0010ffff"  # before the names of special tokens that no text is to spell: a code point, not a character
LINE_END = re.compile(r"(?<=\S)(?=\r?\n)")  # GPT-2's words end here in any case: pieces give the tokens of the whole


class Tokenizer:
    """encode(str) -> ids, decode(ids) -> str, vocab_size, end_of_text (an id, or None where there is none).

    bos: ids that a published tokenizer puts in front of a text, [] where it puts none; `encode` leaves them out.
    lossless: every text decodes back, or is refused; unknown: the id of what cannot be spelled, or None; by_line: a
    text may be encoded in pieces that LINE_END cuts.

    description: see above; names: bytes, chars, gpt2, any other with "json". Text that spells a special token is
    encoded as ordinary text. Raises UserError for a name that is not known, a broken tokenizer.json, and for GPT-2's
    ranks where they cannot be fetched.
    """

    def __init__(self, description):
        self.description = description
        self.name = description["tokenizer"]
        self.end_of_text = description.get("end_of_text")
        self.lossless, self.unknown, self.by_line, self.bos = True, None, True, []
        if self.name == "bytes":
            self.vocab_size = 256
            self._bytes_of = [bytes([i]) for i in range(256)].__getitem__
        elif self.name == "chars":
            self.chars = list(description["chars"])
            self.vocab_size = len(self.chars)
            self._bytes_of = [c.encode() for c in self.chars].__getitem__
        elif self.name == "gpt2":
            self.bpe = gpt2_ranks()
            self.vocab_size = self.bpe.n_vocab
            self.end_of_text = self.bpe.eot_token
            self._bytes_of = self.bpe.decode_single_token_bytes
        elif "json" in description:
            self.vocab_size = description["vocab_size"]
            self._load(description["json"])
        else:
            raise UserError(f"unknown tokenizer {self.name!r}: expected bytes, chars or gpt2, or a tokenizer.json")

    def __reduce__(self):
        return Tokenizer, (self.description,)  # a worker process makes its own

    def _load(self, text):
        from tokenizers import Tokenizer as Trained

        try:
            spec = json.loads(text)
            self.trained = Trained.from_str(text)
            self.encoder = Trained.from_str(json.dumps(without_special_tokens(spec)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"the tokenizer.json of {self.name} is broken: {error}") from None
        ids = self.trained.get_vocab(with_added_tokens=True)
        if max(ids.values(), default=0) >= self.vocab_size:
            raise UserError(f"{self.name}: its tokenizer.json has ids up to {max(ids.values())}, not {self.vocab_size}")
        self.bos = self.description.get("bos", first_ids(self.trained))
        splits, decodes_bytes = spec.get("pre_tokenizer") or {}, (spec.get("decoder") or {}).get("type") == "ByteLevel"
        as_gpt2 = splits.get("type") == "ByteLevel" and splits.get("use_regex", True)
        plain = not spec.get("normalizer") and all(token["special"] for token in spec.get("added_tokens", []))
        self.by_line = as_gpt2 and plain and not splits.get("add_prefix_space", True)
        by_bytes = spec["model"].get("type") == "BPE" and set(byte_alphabet()) <= ids.keys()
        self.lossless = by_bytes and decodes_bytes and not spec.get("normalizer")
        self.unknown = spec["model"].get("unk_id", ids.get(spec["model"].get("unk_token")))
        self._bytes_of = None
        if decodes_bytes:
            byte_of = {char: byte for byte, char in enumerate(byte_alphabet())}
            plain = {i: token.content.encode() for i, token in self.trained.get_added_tokens_decoder().items()}
            spelled = {i: bytes(byte_of[c] for c in token) for token, i in ids.items() if i not in plain}
            self._bytes_of = {**spelled, **plain}.__getitem__

    def encode(self, text):
        if self.name == "bytes":
            return list(text.encode())
        if self.name == "gpt2":
            return self.bpe.encode(text, disallowed_special=())
        if self.name != "chars":
            pieces = LINE_END.split(text) if self.by_line else [text]
            if RENAMED in text:  # a text may hold it before what follows it in a special token's new name
                pieces = [part for piece in pieces for part in re.split(f"(?<={RENAMED})", piece)]
            return [i for e in self.encoder.encode_batch_fast(pieces, add_special_tokens=False) for i in e.ids]
        index = {c: i for i, c in enumerate(self.chars)}
        missing = sorted(set(text) - index.keys())
        if missing:
            raise UserError(f"this vocabulary of {len(self.chars)} characters lacks {''.join(missing)!r}")
        return [index[c] for c in text]

    def encode_prompt(self, text):
        """Like `encode`, but the end-of-text token where a text spells it: 50256 for GPT-2's "<|endoftext|>"."""
        end = None if self.end_of_text is None else self.decode([self.end_of_text])
        first, *rest = text.split(end) if end else [text]
        return self.encode(first) + [i for piece in rest for i in [self.end_of_text, *self.encode(piece)]]

    def decode(self, ids):
        """Bad UTF-8 inside becomes U+FFFD; a character cut off at the end is left out."""
        if self._bytes_of is None:  # not by bytes: T5
            return self.trained.decode(ids, skip_special_tokens=False)
        return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(map(self._bytes_of, ids)))

    def losses(self, text, ids):
        """(unknown tokens in the ids of a text, characters of it that do not come back when they are decoded)."""
        if self.lossless:
            return 0, 0
        return ids.count(self.unknown), (Counter(text) - Counter(self.decode(ids))).total()

    def to_json(self):
        """The text of a tokenizer.json of the tokenizers library that gives the ids that this one gives.

        A special token in a text, "<|endoftext|>", is one id there and ordinary text here.
        """
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Trained

        if "json" in self.description:
            content = json.loads(self.description["json"])
            if (content.get("post_processor") or {}).get("type") in (None, "ByteLevel"):
                return self.description["json"]
            return json.dumps({**content, "post_processor": None}, ensure_ascii=False)  # else </s> ends a prompt
        if self.name == "chars":
            # Without an unknown token, a character that the vocabulary lacks is an error, as it is here
            converted = Trained(models.WordLevel({c: i for i, c in enumerate(self.chars)}, unk_token=""))
            converted.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            converted.decoder = decoders.Fuse()
            return converted.to_str()
        specials = {self.end_of_text: "<|endoftext|>"} if self.name == "gpt2" else {}
        ranks = {self._bytes_of(i): i for i in range(self.vocab_size) if i not in specials}
        alphabet = byte_alphabet()
        spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
        merges = [(spelled[left], spelled[right]) for left, right in merges_of(ranks)]
        # The special tokens are in the vocabulary too, or they would be numbered again
        vocabulary = {spelled[token]: i for token, i in ranks.items()} | {text: i for i, text in specials.items()}
        converted = Trained(models.BPE(vocabulary, merges))
        converted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.name == "gpt2")
        converted.decoder = decoders.ByteLevel()
        converted.add_special_tokens([AddedToken(text, normalized=False) for text in specials.values()])
        return converted.to_str()


def tokenizer_named(word, texts, end_of_text=False):
    """The tokenizer that --tokenizer=WORD asks for: bytes, gpt2, bpe:N trained on `texts`, or a path's.

    texts: one, or an iterable of them; end_of_text: documents follow each other, so there must be a token that ends
    one. Of bytes it is 0, of bpe:N the last id.
    """
    if word in ("bytes", "gpt2"):
        end = {"end_of_text": 0} if end_of_text and word == "bytes" else {}
        return Tokenizer({"bytes": BYTES, "gpt2": GPT2}[word] | end)
    if word and Path(word).exists():
        return Tokenizer(read_tokenizer_json(json_in(word), f"hf:{Path(word).resolve().name}", say_guess=end_of_text))
    if not re.fullmatch(r"bpe:[1-9]\d{2,4}", word) or not 257 <= int(word[4:]) <= 65536:
        raise UserError(
            f"unknown tokenizer {word!r}: expected bytes, gpt2, bpe:N with N from 257 to 65536, or a tokenizer.json"
        )
    vocab_size = int(word[4:])
    end = {"end_of_text": vocab_size - 1} if end_of_text else {}
    text = train_bpe(texts, vocab_size, end_of_text)
    return Tokenizer({"tokenizer": word, "vocab_size": vocab_size, **end, "json": text})


def train_bpe(texts, vocab_size, end_of_text=False):
    """A byte-level BPE of exactly that many tokens, split into words as GPT-2's: the text of its tokenizer.json."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = Trained(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - end_of_text
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    texts, cuts = [texts] if isinstance(texts, str) else texts, Counter()
    # A text in one piece takes 180 bytes a byte
    pieces = (piece for text in texts for line in LINE_END.split(text) for piece in without_long_runs(line, cuts))
    bpe.train_from_iterator(pieces, trainer)
    if cuts:
        print0(
            f"bpe:{vocab_size}: {cuts['runs']:,} runs of more than {LONGEST:,} characters, all text or all white "
            "space, were cut for training: its time would grow with the square of their length",
        )
    if bpe.get_vocab_size() != size:
        most = bpe.get_vocab_size() + end_of_text
        raise UserError(f"bpe:{vocab_size}: this text has merges for {most} tokens only: ask for fewer")
    if end_of_text:
        bpe.add_special_tokens(["<|endoftext|>"])
    return bpe.to_str()


def without_long_runs(text, cuts):
    """The text in pieces, cut every LONGEST characters inside of a longer run. cuts: counts "runs"."""
    start = 0
    for run in LONG_RUN.finditer(text):
        cuts["runs"] += 1
        for at in range(run.start() + LONGEST, run.end(), LONGEST):
            yield text[start:at]
            start = at
    yield text[start:]


def pretrained(name, place, revision):
    """The description of a published tokenizer that has a tokenizer.json: of a folder, or of a model of the hub."""
    if Path(place).exists():
        path = json_in(place)
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", place):
        path = fetched_tokenizer(place, revision)
    else:
        raise UserError(f"there is no folder {place}: expected one with a tokenizer.json, or a model of the hub")
    description = read_tokenizer_json(path, name, say_guess=True)
    if "end_of_text" not in description:
        raise UserError(f"{path} has no end-of-text token: expected eos_token in tokenizer_config.json, or </s>")
    return description


def json_in(place):
    """The path of the tokenizer.json that a folder holds, or that is given itself."""
    path = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise UserError(f"{place} has no tokenizer.json: transformers' save_pretrained writes it")
    return path


def read_tokenizer_json(path, name, say_guess=False):
    """The description, under `name`, of the tokenizer that a tokenizer.json holds.

    Its end-of-text token is the one that the files beside it state, else guessed; say_guess: print a guess.
    """
    from tokenizers import Tokenizer as Trained

    try:
        text = path.read_text(encoding="utf-8")
        ids = Trained.from_str(text).get_vocab(with_added_tokens=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a valid tokenizer.json: {error}") from None
    stated, bos = stated_by(path.with_name("tokenizer_config.json"))
    if stated is not None and stated not in ids:
        raise UserError(f"{path.with_name('tokenizer_config.json')}: eos_token={stated!r} is not in {path.name}")
    guesses = [token for token in ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>") if token in ids]
    if stated is None and guesses and say_guess:
        print0(f"{path}: no tokenizer_config.json states an eos_token: taken for it: {guesses[0]}")
    ends = guesses if stated is None else [stated]
    end = {"end_of_text": ids[ends[0]]} if ends else {}
    first = {} if bos is None else {"bos": [ids[bos]] if bos in ids else []}
    return {"tokenizer": name, "vocab_size": max(ids.values(), default=0) + 1, **end, **first, "json": text}


def stated_by(path):
    """(end-of-text token, BOS token) of transformers' settings beside a tokenizer.json.

    None where they name none; BOS is "" where they say that no text begins with it, None where they leave that open.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8-sig"))
        end, bos = (
            token.get("content") if isinstance(token, dict) else token
            for token in (settings.get("eos_token"), settings.get("bos_token"))
        )
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return end, {True: bos, False: ""}.get(settings.get("add_bos_token"))


def first_ids(trained):
    """The ids that a tokenizer's post-processor puts in front of a text: <s> of LLaMA's."""
    mask = trained.encode("a").special_tokens_mask
    return trained.encode("a").ids[: mask.index(0)] if 0 in mask else []


def fetched_tokenizer(repo, revision):
    """Where a model's tokenizer.json lies below HF_HOME, after fetching it if it is not there."""
    import huggingface_hub as hub

    try:
        cached = hub.try_to_load_from_cache(repo, "tokenizer.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        hub.HfApi().model_info(repo, revision=revision, expand=["sha"])  # fails at once where there is no network
        with suppress(hub.errors.EntryNotFoundError):  # it states which token ends a text
            hub.hf_hub_download(repo, "tokenizer_config.json", revision=revision)
        return Path(hub.hf_hub_download(repo, "tokenizer.json", revision=revision))
    except Exception as error:
        raise UserError(
            f"the tokenizer {repo} is no folder here and could not be fetched ({type(error).__name__}): where there is "
            f"a network, run hf download {repo} tokenizer.json --revision={revision} --local-dir=DIR, bring DIR here "
            "and use --tokenizer_path=DIR, or bring the whole HF_HOME"
        ) from None


def without_special_tokens(spec):
    """A tokenizer.json whose special tokens have names that no text spells: some models find "</s>" by themselves."""
    special = {token["content"] for token in spec.get("added_tokens", []) if token["special"]}

    def renamed(token):
        if token == "\0":  # the end of a text in our exports, but in a text the byte, spelled as byte-level models do
            return byte_alphabet()[0]
        return RENAMED + token if token in special else token

    model, vocab = spec["model"], spec["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab = {renamed(token): i for token, i in vocab.items()}
    else:
        vocab = [[renamed(token), score] for token, score in vocab]
    added = [token for token in spec.get("added_tokens", []) if token["content"] != "\0"]
    added = [{**token, "content": renamed(token["content"])} for token in added]
    model = {**model, "vocab": vocab, **({"unk_token": renamed(model["unk_token"])} if "unk_token" in model else {})}
    return {**spec, "model": model, "added_tokens": added, "truncation": None, "padding": None, "post_processor": None}


def byte_alphabet():
    """The characters that stand for the 256 bytes in a byte-level tokenizer.json: themselves where they show."""
    shown = [chr(byte).isprintable() and chr(byte) != " " for byte in range(256)]
    return [chr(byte if shown[byte] else 256 + shown[:byte].count(False)) for byte in range(256)]


def gpt2_ranks():
    import tiktoken  # fetches its ranks at first use

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:
        raise UserError(
            f"GPT-2's tokenizer could not be fetched ({type(error).__name__}): where there is a network, run "
            "TIKTOKEN_CACHE_DIR=DIR python -c 'import tiktoken; tiktoken.get_encoding(\"gpt2\")', "
            "bring DIR here and set TIKTOKEN_CACHE_DIR to it"
        ) from None


def merges_of(ranks):
    """[(left, right), ...] in the order in which they apply, of {token bytes: rank}.

    A token's last merge joins the two pieces that the merges before it leave of its bytes.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pieces = [bytes([b]) for b in token]
        while len(pieces) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in pairwise(pieces)]
            least = min(pairs)
            if least >= rank:
                raise UserError(f"token {token!r} of the tokenizer follows from no merge of the tokens before it")
            at = pairs.index(least)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        if len(pieces) == 2:
            merges.append(tuple(pieces))
    return merges
