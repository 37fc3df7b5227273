"""Tokenizers by description: a plain dict, {"tokenizer": name, "vocab_size": n, ...}, that checkpoints carry along."""

import codecs

from blockwise import UserError

BYTES = {"tokenizer": "bytes", "vocab_size": 256}
GPT2 = {"tokenizer": "gpt2", "vocab_size": 50257}


class Tokenizer:
    """encode(str) -> ids, decode(ids) -> str, vocab_size. description: see above; names: bytes, chars, gpt2;
    any, if it comes with "json", the text of a tokenizer.json of the tokenizers library.

    Raises UserError for a name that is not known, and for GPT-2's ranks where they cannot be fetched.
    """

    def __init__(self, description):
        self.description = description
        self.name = description["tokenizer"]
        self.library = "json" in description
        if self.library:
            self.tokens = from_json(description["json"], self.name)
            self.vocab_size = description["vocab_size"]
        elif self.name == "bytes":
            self.vocab_size = 256
            self._bytes_of = [bytes([i]) for i in range(256)].__getitem__
        elif self.name == "chars":
            self.chars = list(description["chars"])
            self.vocab_size = len(self.chars)
            self._bytes_of = [c.encode() for c in self.chars].__getitem__
        elif self.name == "gpt2":
            self.bpe = gpt2_ranks()
            self.vocab_size = self.bpe.n_vocab
            self._bytes_of = self.bpe.decode_single_token_bytes
        else:
            raise UserError(f"unknown tokenizer {self.name!r}: expected bytes, chars or gpt2")

    def encode(self, text):
        if self.library:
            return self.tokens.encode(text, add_special_tokens=False).ids
        if self.name == "bytes":
            return list(text.encode())
        if self.name == "gpt2":
            return self.bpe.encode(text, disallowed_special=())
        index = {c: i for i, c in enumerate(self.chars)}
        missing = sorted(set(text) - index.keys())
        if missing:
            raise UserError(f"this vocabulary of {len(self.chars)} characters lacks {''.join(missing)!r}")
        return [index[c] for c in text]

    def decode(self, ids):
        """Bad UTF-8 inside becomes U+FFFD; a character cut off at the end is left out."""
        if self.library:
            return self.tokens.decode(list(ids), skip_special_tokens=False)
        return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(map(self._bytes_of, ids)))


def from_json(text, name):
    from tokenizers import Tokenizer as LibraryTokenizer

    try:
        return LibraryTokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"the tokenizer.json of {name} is broken: {error}") from None


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
