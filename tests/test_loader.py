"""Data sets on the disk: what is read from them, and every way in which they can be broken."""

import hashlib
import json
import os
import pickle
import shutil
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import losses, metrics, run

import train
from blockwise import UserError, loader
from blockwise.data.writing import write_dataset
from blockwise.loader import Dataset, Split, eval_starts, full_batches, micro_seed, train_batch
from blockwise.tokenizer import BYTES
from blockwise.training.batches import TrainBatches

IDS = np.random.default_rng(0).integers(256, size=1000)
CONFIG = SimpleNamespace(seed=5, data_seed=5, batch_size=2, block_size=8, gradient_accumulation_steps=4)
PLAIN = {"vocab_size": 3, "itos": {0: "a", 1: "b", 2: "ö"}, "stoi": {"a": 0, "b": 1, "ö": 2}}


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "set", {"train": IDS[:800], "val": IDS[800:]}, BYTES, "made up")
    return tmp_path / "set"


def opened(folder, block_size=8, vocab_size=None):
    return Dataset.open(folder.parent, folder.name, block_size, vocab_size)


def refusal(function, *args):
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def world_of(rank, size):
    return SimpleNamespace(rank=rank, size=size, device=torch.device("cpu"))


def put(folder, ids, split="train"):
    (folder / f"{split}.bin").write_bytes(np.asarray(ids, dtype="<u2").tobytes())


def edit_meta(folder, **changes):
    path = folder / "meta.json"
    meta = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))


def edit_split(folder, split, **changes):
    splits = json.loads((folder / "meta.json").read_text())["splits"]
    edit_meta(folder, splits={**splits, split: {**splits[split], **changes}})


def without_meta(folder, pickled=None):
    (folder / "meta.json").unlink()
    if pickled is not None:
        (folder / "meta.pkl").write_bytes(pickled)
    return folder


# What is read


def test_open(folder):
    data = opened(folder)
    assert (data.train.tokens, data.val.tokens, data.embedding_rows) == (800, 200, 256)
    assert data.tokenizer == BYTES and data.note == ""
    assert data.train.bound == data.val.bound == 256
    assert data.train.checked and data.val.checked


@pytest.mark.parametrize("given, rows, bound", [(None, 128, 100), (100, 100, 100), (101, 101, 101), (512, 512, 512)])
def test_rows_of_the_embedding(folder, given, rows, bound):
    write_dataset(folder, {"train": IDS[:800] % 100, "val": IDS[800:] % 100}, {**BYTES, "vocab_size": 100}, "made up")
    data = opened(folder, vocab_size=given)
    assert (data.embedding_rows, data.train.bound, data.tokenizer["vocab_size"]) == (rows, bound, 100)


def test_sequences_are_inputs_and_targets_shifted_by_one(folder):
    x, y = opened(folder).train.sequences([0, 5, 791], 8)
    assert x.dtype == y.dtype == torch.int64
    for row, start in enumerate((0, 5, 791)):
        assert x[row].tolist() == IDS[start : start + 8].tolist()
        assert y[row].tolist() == IDS[start + 1 : start + 9].tolist()


def test_ids_are_little_endian_unsigned(folder):
    without_meta(folder)
    (folder / "train.bin").write_bytes(b"\x01\x02" * 5 + b"\x50\xc4" * 5)
    x, _ = opened(folder).train.sequences([0], 9)
    assert x[0].tolist() == [513] * 5 + [50256] * 4


# Batches


def addressed(split, world, seed=1, steps=3, micro_steps=8):
    """Inputs of all processes, in the order of the addresses that train.py gives them: step, micro-step, rank."""
    batches = [
        train_batch(split, seed, step, micro * world + rank, 2, 8)[0]
        for step in range(steps)
        for micro in range(micro_steps // world)
        for rank in range(world)
    ]
    return torch.cat(batches)


def test_batch_depends_on_its_address_alone(folder):
    split = opened(folder).train
    first = train_batch(split, 1, 2, 3, 4, 8)
    np.random.seed(5)
    torch.manual_seed(5)
    train_batch(split, 9, 9, 9, 4, 8)
    again = train_batch(opened(folder).train, 1, 2, 3, 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    x, y = first
    assert x.shape == y.shape == (4, 8) and torch.equal(x[:, 1:], y[:, :-1])
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
        assert not torch.equal(train_batch(split, *other, 4, 8)[0], x)


def test_any_number_of_processes_sees_the_same(folder):
    split = opened(folder).train
    alone = addressed(split, 1)
    assert alone.shape == (3 * 8 * 2, 8)
    assert len(alone.unique(dim=0)) > 40
    for world in (2, 4, 8):
        assert torch.equal(addressed(split, world), alone)


def test_batches_reach_both_ends_of_the_split(folder):
    put(folder, range(12))
    without_meta(folder)
    x, y = train_batch(opened(folder, block_size=8).train, 0, 0, 0, 200, 8)
    assert set(x[:, 0].tolist()) == {0, 1, 2, 3} and y.max() == 11
    put(folder, range(9))
    assert train_batch(opened(folder, block_size=8).train, 0, 0, 0, 5, 8)[1][:, -1].tolist() == [8] * 5


def test_dropout_seeds_differ_by_address():
    seeds = {micro_seed(*address) for address in [(1, 2, 3), (3, 2, 1), (1, 3, 2), (2, 2, 3), (1, 2, 4)]}
    assert len(seeds) == 5
    assert micro_seed(1, 2, 3) == micro_seed(1, 2, 3)
    torch.manual_seed(micro_seed(2**64, 2**40, 2**20))


@pytest.mark.parametrize(
    "tokens, sequences, overlap",
    [(1000, 10, False), (1000, 1, False), (1000, 125, True), (1000, 991, True), (50, 200, True), (9, 5, True)],
)
def test_evaluation_sequences(tokens, sequences, overlap):
    split = Split(Path("nowhere"), tokens, 256)
    starts = eval_starts(split, sequences, 8)
    assert starts.dtype == np.int64 and len(starts) == sequences
    assert starts.tolist() == eval_starts(split, sequences, 8).tolist()
    assert starts[0] == 0 and (sequences == 1 or starts[-1] == tokens - 9)
    gaps = np.diff(starts).tolist()
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert any(gap < 8 for gap in gaps) == overlap


def test_halves_of_the_validation_text_share_no_token():
    split = Split(Path("nowhere"), 101, 256)
    first, second = (eval_starts(split, 7, 8, half) for half in (0, 1))
    assert first[0] == 0 and first[-1] + 8 + 1 == 50 == second[0] and second[-1] + 8 + 1 == 101
    with pytest.raises(UserError, match="test_loss=True: half of nowhere has fewer than block_size"):
        eval_starts(Split(Path("nowhere"), 17, 256), 1, 8, 0)


@pytest.mark.parametrize("tokens,half", [(101, None), (101, 0), (101, 1), (100, 1), (9, None), (4000, None)])
def test_batches_that_cover_the_whole_text(tokens, half):
    """Every token of the text is read, in the fewest batches of 4 sequences that can do it."""
    split = Split(Path("nowhere"), tokens, 256)
    batches = full_batches(split, 4, 8, half)
    starts = eval_starts(split, 4 * batches, 8, half)
    first, last = {None: (0, tokens), 0: (0, tokens // 2), 1: (tokens // 2, tokens)}[half]
    assert {t for start in starts for t in range(start, start + 9)} == set(range(first, last))
    assert 4 * (batches - 1) * 8 < last - first


# What is broken


@pytest.mark.parametrize(
    "name, parts",
    [
        ("kjv", ["'kjv' is not prepared", "run: python data/kjv/prepare.py --data_dir={folder}"]),
        ("kjv_bpe4096", ["run: python data/kjv/prepare.py --tokenizer=bpe:4096 --data_dir={folder}"]),
        ("pylib_gpt2", ["run: python data/pylib/prepare.py --tokenizer=gpt2 --data_dir={folder}"]),
        ("c4", ["run: python data/c4/prepare.py --data_dir={folder}"]),
        ("mine", ["no data set 'mine'", "python data/text/prepare.py FILE --name=mine"]),
        ("text", ["python data/text/prepare.py FILE --name=text"]),  # whose folder is the script's
        ("sets", ["did you mean set?"]),
    ],
)
@pytest.mark.parametrize("vocab_size", [None, 256])
def test_a_missing_set_names_the_command(folder, name, parts, vocab_size):
    message = refusal(Dataset.open, folder.parent, name, 8, vocab_size)
    assert all(part.format(folder=folder.parent) in message for part in parts)


@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_sizes(folder, split):
    path = folder / f"{split}.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"{split}.bin has an odd length, {len(whole) - 1} bytes" in refusal(opened, folder)
    path.write_bytes(whole[:-2])
    tokens = len(whole) // 2
    message = refusal(opened, folder)
    assert all(part in message for part in (f"{split}.bin has {tokens - 1} tokens", "meta.json", f"says {tokens}"))
    path.write_bytes(whole[:16])
    assert f"{split}.bin has 8 tokens: expected at least block_size + 1 = 9" in refusal(opened, folder)
    path.write_bytes(b"")
    assert f"{split}.bin has 0 tokens" in refusal(opened, folder)
    path.unlink()
    message = refusal(opened, folder)
    assert f"{split}.bin is missing" in message and "did you mean" not in message  # itself, by its other split


def test_split_of_just_one_sequence_is_enough(folder):
    assert opened(folder, block_size=199).val.tokens == 200
    assert "expected at least block_size + 1 = 201" in refusal(opened, folder, 200)


def test_meta_lacks_a_key(folder):
    whole = json.loads((folder / "meta.json").read_text())
    for key in ("tokenizer", "vocab_size", "dtype", "splits"):
        edit_meta(folder, **{**whole, key: None})
        assert f"meta.json lacks '{key}'; prepare the data set again" in refusal(opened, folder)
    for split in ("train", "val"):
        for key in ("tokens", "sha256"):
            without = {k: v for k, v in whole["splits"][split].items() if k != key}
            edit_meta(folder, **{**whole, "splits": {**whole["splits"], split: without}})
            assert f"meta.json lacks '{key}'" in refusal(opened, folder)
        edit_meta(folder, **{**whole, "splits": {k: v for k, v in whole["splits"].items() if k != split}})
        assert f"meta.json lacks '{split}'" in refusal(opened, folder)
    edit_meta(folder, **{**whole, "tokenizer": "chars"})
    assert "meta.json lacks 'chars'" in refusal(opened, folder)


@pytest.mark.parametrize(
    "changes",
    [dict(vocab_size="256"), dict(vocab_size=256.0), dict(vocab_size=0), dict(vocab_size=65537), dict(dtype="int32"),
     dict(dtype="uint32", vocab_size=2**32 + 1), dict(splits=5), dict(splits={"train": 5, "val": 5}), dict(splits=[]),
     dict(tokenizer=5), dict(tokenizer="chars", vocab_size=2, chars=[1, 2]), dict(end_of_text="0"),
     dict(end_of_text=256), dict(end_of_text=-1)],
)  # fmt: skip
def test_meta_holds_nonsense(folder, changes):
    edit_meta(folder, **changes)
    message = refusal(opened, folder)
    assert "meta.json is broken" in message and "prepare the data set again" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '"words"', '{"vocab_size": 256', "\x00", "\udcff"])
def test_meta_is_no_json(folder, text):
    (folder / "meta.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "meta.json is broken" in refusal(opened, folder)


@pytest.mark.parametrize("split, place", [("train", 0), ("train", 799), ("val", 100)])
def test_id_outside_the_vocabulary(folder, split, place):
    ids = {"train": IDS[:800].copy(), "val": IDS[800:].copy()}[split]
    ids[place] = 256
    put(folder, ids, split)
    message = refusal(opened, folder)
    assert f"{split}.bin: token id 256" in message and "256" in message and "prepare it again" in message
    assert opened(folder, vocab_size=257).embedding_rows == 257


def test_vocabulary_given_too_small(folder):
    assert "vocab_size=255: data set set needs at least 256" in refusal(opened, folder, 8, 255)


# nanoGPT's descriptions


def test_without_any_meta_it_is_gpt2s(folder):
    without_meta(folder)
    data = opened(folder)
    assert data.embedding_rows == 50304
    assert data.tokenizer == {"tokenizer": "gpt2", "vocab_size": 50257}
    put(folder, [50256] * 20)
    assert opened(folder).train.bound == 50257
    put(folder, [50257] * 20)
    assert "token id 50257" in refusal(opened, folder)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nano_gpts_meta_is_read(folder, protocol):
    without_meta(folder, pickle.dumps(PLAIN, protocol))
    put(folder, [0, 1, 2] * 10)
    put(folder, [2] * 10, "val")
    data = opened(folder)
    assert data.embedding_rows == 64
    assert data.tokenizer == {"tokenizer": "chars", "vocab_size": 3, "chars": ["a", "b", "ö"]} and data.note == ""
    data.verify()  # without hashes
    put(folder, [3] * 10)
    assert "token id 3 where the vocabulary has 3" in refusal(opened, folder)


def test_pickled_code_is_refused_and_not_run(folder, tmp_path):
    command = f"touch {tmp_path}/it_ran"
    os_system = f"c{os.system.__module__}\nsystem\n(V{command}\ntR.".encode()
    evaluated = f"cbuiltins\neval\n(V__import__('os').system('{command}')\ntR.".encode()
    instance = f"(V{command}\ni{os.system.__module__}\nsystem\n.".encode()
    for pickled in (os_system, evaluated, instance, pickle.dumps({**PLAIN, "vocab_size": np.int64(3)})):
        (folder / "meta.json").unlink(missing_ok=True)
        (folder / "meta.pkl").write_bytes(pickled)
        assert "only plain data is read" in refusal(opened, folder)
        assert not (tmp_path / "it_ran").exists()
    pickle.loads(os_system)
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "pickled",
    [b"", b"nonsense", pickle.dumps(PLAIN)[:-5], pickle.dumps([]), pickle.dumps({}), pickle.dumps({"vocab_size": 3}),
     b"\x80\x04\x95" + b"\xff" * 8 + pickle.dumps(PLAIN, 3),  # a frame of an impossible length
     pickle.dumps({**PLAIN, "vocab_size": 4}), pickle.dumps({**PLAIN, "vocab_size": "many"}), pickle.dumps(5)],
)  # fmt: skip
def test_broken_pickle(folder, pickled):
    message = refusal(opened, without_meta(folder, pickled))
    assert "meta.pkl" in message and "prepare the data set again" in message


def test_meta_json_comes_before_meta_pkl(folder):
    (folder / "meta.pkl").write_bytes(b"nonsense")
    assert opened(folder).tokenizer == BYTES


# Files too large to scan at every start, and the full check


def test_big_split_is_checked_batch_by_batch(folder, monkeypatch):
    ids = IDS[:800].copy()
    ids[400] = 300
    put(folder, ids)
    monkeypatch.setattr(loader, "SCAN_BYTES", 1000)
    data = opened(folder)
    assert (data.train.checked, data.val.checked) == (False, True)
    data.train.sequences([0, 391], 8)
    for start in (392, 400):  # the bad id as last target, as first input
        assert "train.bin: token id 300" in refusal(data.train.sequences, [0, start], 8)
    assert "token id 300" in refusal(data.verify)
    without_meta(folder)
    assert opened(folder).train.checked


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("byte, part", [(100, "sha256"), (101, "token id")])
def test_verify_finds_one_flipped_byte(folder, monkeypatch, split, byte, part):
    opened(folder).verify()
    path = folder / f"{split}.bin"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(loader, "SCAN_BYTES", 0)
    message = refusal(opened(folder).verify)
    assert part in message and f"{split}.bin" in message


# Wide ids, what belongs to what, files that are replaced


@pytest.mark.parametrize("vocab_size", [65537, 151936])
def test_large_vocabularies_are_uint32(tmp_path, vocab_size):
    ids = np.random.default_rng(0).integers(vocab_size, size=1000)
    ids[:2] = 0, vocab_size - 1
    description = {**BYTES, "vocab_size": vocab_size}
    write_dataset(tmp_path / "set", {"train": ids[:800], "val": ids[800:]}, description, "made up")
    folder = tmp_path / "set"
    assert (folder / "train.bin").read_bytes() == ids[:800].astype("<u4").tobytes()
    assert json.loads((folder / "meta.json").read_text())["dtype"] == "uint32"
    data = opened(folder)
    data.verify()
    assert (data.train.tokens, data.embedding_rows) == (800, -(-vocab_size // 64) * 64)
    x, y = data.train.sequences([0, 791], 8)
    assert x.tolist() == [ids[:8].tolist(), ids[791:799].tolist()] and y[0].tolist() == ids[1:9].tolist()
    (folder / "val.bin").write_bytes((folder / "val.bin").read_bytes()[:-1])
    assert "799 bytes, no multiple of 4: expected uint32" in refusal(opened, folder)


WRONG = {
    "uint32": (np.random.default_rng(0).integers(50257, size=500).astype("<u4").tobytes(), '"dtype": "uint32"'),
    "int64": (np.random.default_rng(0).integers(50257, size=500).astype("<i8").tobytes(), '"dtype": "uint32"'),
    "above uint16": (np.random.default_rng(0).integers(151936, size=500).astype("<u4").tobytes(), '"dtype": "uint32"'),
    "text": (b"Plain text, and no token ids.\n" * 20, "looks like text"),
    "npy": (b"\x93NUMPY\x01\x00v\x00" + b" \x01" * 400, "numpy.save"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_not_taken_for_uint16(folder, kind):
    data, part = WRONG[kind]
    without_meta(folder)
    (folder / "val.bin").write_bytes(data)
    message = refusal(opened, folder)
    assert "val.bin looks like" in message and part in message


def test_tokens_of_gpt2_are_not_taken_for_something_else(folder):
    without_meta(folder)
    for ids in (np.random.default_rng(0).integers(50257, size=9999), [262] * 500, [0] * 500, [0, 50256] * 500):
        put(folder, ids)
        assert "GPT-2" in opened(folder).note
    assert "set has no meta.json" in opened(folder).note


def test_bytes_of_text(folder):
    assert (opened(folder).train.bytes, opened(folder).val.bytes) == (None, None)
    edit_split(folder, "val", bytes=1234)
    assert (opened(folder).train.bytes, opened(folder).val.bytes) == (None, 1234)
    edit_split(folder, "val", bytes="many")
    assert "meta.json is broken" in refusal(opened, folder)


def test_identity(folder, monkeypatch):
    """Files that nothing describes are hashed; the stated hash is taken; a large file by samples."""
    stated = opened(folder).identity
    by_hand = {split: hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest() for split in ("train", "val")}
    assert stated == {"dataset": "set", "tokenizer": stated["tokenizer"], **by_hand}
    assert len(stated["tokenizer"]) == 64
    put(folder, IDS[::-1][:800])
    assert opened(folder).identity == stated
    without_meta(folder, pickle.dumps({"vocab_size": 256, "itos": {i: chr(i) for i in range(256)}}))
    other = opened(folder).identity
    assert other["val"] == stated["val"]
    assert other["train"] != stated["train"] and other["tokenizer"] != stated["tokenizer"]
    monkeypatch.setattr(loader, "SCAN_BYTES", 1)
    large = np.random.default_rng(0).integers(256, size=1 << 20)
    put(folder, large)
    sampled = opened(folder).identity["train"]
    large[1 << 19] ^= 1
    put(folder, large)
    assert sampled.startswith("sampled:") and opened(folder).identity["train"] not in (sampled, stated["train"])


def test_a_tokenizer_is_known_by_what_it_does(tmp_path):
    """Not by its name, the form of its characters, or a mark for the end of a document."""

    def identity(description):
        write_dataset(tmp_path / "set", {"train": [1] * 9, "val": [1] * 9}, description, "made up")
        return opened(tmp_path / "set").identity["tokenizer"]

    one, same = ({"tokenizer": name, "vocab_size": 300, "json": "{}"} for name in ("bpe:300", "hf:x"))
    assert identity(one) == identity(same) != identity({**one, "json": "[]"})
    assert identity(BYTES) == identity({**BYTES, "end_of_text": 0}) != identity({**BYTES, "vocab_size": 257})
    chars = {"tokenizer": "chars", "vocab_size": 2, "chars": "ab"}
    assert identity(chars) == identity({**chars, "chars": ["a", "b"]}) != identity({**chars, "chars": "ba"})


def test_a_run_keeps_the_files_that_it_began_with(folder):
    data = opened(folder)
    before = data.train.sequences([0, 791], 8)[0]
    write_dataset(folder, {"train": IDS[::-1][:90], "val": IDS[:90]}, BYTES, "another text")
    assert torch.equal(data.train.sequences([0, 791], 8)[0], before)
    data.verify()
    assert opened(folder).train.tokens == 90
    (folder / "train.bin").unlink()
    assert torch.equal(data.train.sequences([0, 791], 8)[0], before)


# Batches of a run, fetched when they are needed or one ahead


@pytest.mark.parametrize("ahead", [None, True])
@pytest.mark.parametrize("rank, size", [(0, 1), (1, 2)])
def test_training_batches_are_those_of_their_address(folder, ahead, rank, size):
    split, config = opened(folder).train, CONFIG
    batches = TrainBatches(config, split, world_of(rank, size), ahead)
    assert bool(batches.worker) == bool(ahead)
    micro_steps = 4 // size
    order = [(0, 0), (0, 0), *((step, micro) for step in range(3) for micro in range(micro_steps)), (7, 1), (2, 0)]
    for step, micro in order:  # a first pass, the steps, and anything else
        x, y = batches(step, micro)
        expected = train_batch(split, 5, step, micro * size + rank, 2, 8)
        assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])
        assert x.is_contiguous() and y.is_contiguous() and x.dtype == torch.int64
    if ahead:
        assert batches.address == (2, 1)  # what the thread has fetched, and nobody asked for
        assert torch.equal(batches.pending.result()[0], train_batch(split, 5, 2, size + rank, 2, 8)[0])


def test_a_bad_id_raises_where_its_batch_is_asked_for(folder, monkeypatch):
    split = opened(folder).train
    batches = TrainBatches(CONFIG, split, world_of(0, 1), True)
    find = Split.sequences
    bad = find(split, np.random.default_rng((5, 0, 3)).integers(split.tokens - 8, size=2), 8)[0]

    def checked(self, starts, block_size):
        x, y = find(self, starts, block_size)
        if torch.equal(x, bad):
            raise UserError("bad id")
        return x, y

    monkeypatch.setattr(Split, "sequences", checked)
    for micro in range(3):
        batches(0, micro)
    assert "bad id" in str(batches.pending.exception())
    with pytest.raises(UserError, match="bad id"):
        batches(0, 3)


def test_the_thread_that_fetches_is_on_the_device_of_its_process(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append((threading.get_ident(), device)))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch, "empty", lambda *shape, **more: None)
    device = torch.device("cuda:3")
    batches = TrainBatches(CONFIG, opened(folder).train, SimpleNamespace(rank=3, size=4, device=device))
    assert calls == [] and batches.worker.submit(threading.get_ident).result() == calls[0][0] != threading.get_ident()
    assert calls[0][1] == device


def test_a_run_that_fetches_ahead_is_the_same_run(small, finished_run, monkeypatch):
    monkeypatch.setattr(train, "TrainBatches", partial(TrainBatches, ahead=True))
    run(*small, "--max_iters=3")
    run(*small, "--init_from=resume")
    assert losses(small) == losses([f"--out_dir={finished_run}"])


# Bits per byte


def test_bits_per_byte_where_the_bytes_are_stated(small, data_dir, finished_run, tmp_path):
    """2,000 tokens of 3,000 bytes; of the average of the weights too."""
    folder = tmp_path / "data" / "tiny"
    shutil.copytree(data_dir / "tiny", folder)
    edit_split(folder, "val", bytes=3000)
    words = (*small, f"--data_dir={folder.parent}", "--max_iters=2", "--ema_decay=0.5")
    run(*words)
    rows = [row for row in metrics(words).values() if "val/loss" in row]
    assert len(rows) == 2
    for row in rows:
        for mark in ("", "_ema"):
            bits = row[f"val/loss{mark}"] / np.log(2) * 2000 / 3000
            assert row[f"val/bits_per_byte{mark}"] == pytest.approx(bits, rel=1e-12)
    assert not [key for row in metrics([f"--out_dir={finished_run}"]).values() for key in row if "per_byte" in key]
