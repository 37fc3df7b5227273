"""dataset=a:0.7,b:0.3: what is drawn, from where, what is evaluated and logged, and what is refused."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Fork, finish, losses, metrics, out_dir, run

from blockwise import UserError
from blockwise.checkpoint import load_checkpoint
from blockwise.data.mixture import open_dataset
from blockwise.data.writing import write_dataset
from blockwise.loader import Dataset, probe_batch, train_batch
from blockwise.settings import mixture_shares
from blockwise.study.identity import fingerprint
from blockwise.tokenizer import BYTES

MIX = "low:0.7,high:0.3"


@pytest.fixture
def data(tmp_path):
    """`low` has the ids 0 to 99, `high` those from 100 on, more of them, and its text is two bytes a token."""
    rng, folder = np.random.default_rng(0), tmp_path / "data"
    for name, least, size in (("low", 0, 3000), ("high", 100, 9000)):
        ids = {"train": rng.integers(least, least + 100, size), "val": rng.integers(least, least + 100, size // 10)}
        text_bytes = {split: (1 + (name == "high")) * len(ids[split]) for split in ids}
        write_dataset(folder / name, ids, BYTES, "made up", text_bytes)
    return folder


@pytest.fixture
def mixed(small, data):
    return (*small, f"--data_dir={data}", f"--dataset={MIX}")


def high(x):
    return (x >= 100).double().mean(dim=1)


def test_shares():
    assert mixture_shares("kjv") == {"kjv": 1.0}
    assert mixture_shares(MIX) == {"low": 0.7, "high": 0.3}
    assert mixture_shares("a:2, b:6,c:0") == {"a": 0.25, "b": 0.75, "c": 0.0}


@pytest.mark.parametrize("wrong", [
    "a:0.7,b", "a,b", "a:x,b:1", "a:-1,b:2", "a:nan,b:1", "a:inf,b:1", "a:0,b:0", "a:1,a:1", ":1,b:1", "a:", "", "..:1",
])  # fmt: skip
def test_mistakes_in_shares(wrong, small):
    with pytest.raises(UserError, match="expected a data set's name, or a mixture like"):
        run(*small, f"--dataset={wrong}")


def test_other_mistakes(mixed, data):
    status, _, err = finish(Fork(*mixed, "--dataset=low:0.5,hihg:0.5"))
    assert (status, len(err.splitlines())) == (2, 1) and "did you mean high?" in err
    write_dataset(data / "other", {"train": [0] * 99, "val": [1] * 99}, {**BYTES, "tokenizer": "gpt2"}, "made up")
    with pytest.raises(UserError, match="low and other have other tokenizers"):
        run(*mixed, "--dataset=low:0.5,other:0.5")


def test_sequences_are_the_parts_own(data):
    """Every one lies within one part, by share, all of a part's starts are drawn, and the address decides."""
    split = open_dataset(data, MIX, 16).train
    assert split.tokens == 12000 and [part.tokens for part in split.parts] == [3000, 9000]
    found = set()
    for step in range(300):
        x, y = train_batch(split, 1, step, 0, 10, 16)
        assert x.is_contiguous() and torch.equal(x[:, 1:], y[:, :-1])
        assert high(torch.cat((x, y), dim=1)).unique().tolist() == [0, 1]
        assert high(x).sum() == 3  # 10 * 0.3
        found |= {row.numpy().tobytes() for row in x[high(x) == 0]}
    ids = split.parts[0].ids().astype(np.int64)
    windows = {ids[i : i + 16].tobytes() for i in range(3000 - 16)}
    assert found <= windows and len(found) > 1200
    again = train_batch(split, 1, 299, 0, 10, 16)
    assert torch.equal(again[0], x) and not torch.equal(train_batch(split, 1, 299, 1, 10, 16)[0], x)
    shares = [high(probe_batch(split, 0, 0, [i], 16)[0]).item() for i in range(400)]
    assert abs(np.mean(shares) - 0.3) < 0.08


def test_the_ends_of_a_part_are_reached(data):
    split = open_dataset(data, MIX, 16).train
    x, y = split.sequences([0, 2983, 3000, 11983], 16)
    low, top = (part.ids().astype(np.int64) for part in split.parts)
    for i, expected in enumerate((low[:17], low[-17:], top[:17], top[-17:])):
        assert torch.cat((x[i], y[i, -1:])).tolist() == expected.tolist()
    ends = SimpleNamespace(random=lambda: 0.0, integers=lambda below: below - 1)  # the last start of each part
    assert set(split.random_starts(ends, 10, 16).tolist()) == {2983, 11983}


def test_identity_covers_all_parts(data, tmp_path):
    one = open_dataset(data, MIX, 16).identity
    assert open_dataset(data, MIX, 8).identity == one and one["dataset"] == MIX
    assert open_dataset(data, "low:0.6,high:0.4", 16).identity["val"] != one["val"]
    other = tmp_path / "other"
    shutil.copytree(data, other)
    ids = {"train": [5] * 99, "val": Dataset.open(data, "high", 16).val.ids()}
    shutil.rmtree(other / "high")
    write_dataset(other / "high", ids, BYTES, "made up")
    changed = open_dataset(other, MIX, 16).identity
    assert changed["train"] != one["train"] and changed["val"] == one["val"]
    assert fingerprint(other, MIX) != fingerprint(data, MIX) and fingerprint(data, "low:1,no:1") is None


def test_a_run_on_a_mixture(mixed, data, tmp_path, capsys):
    """Its shares, the losses of its parts, an exact resume; the parts' losses are those of a run on them alone."""
    run(*mixed)
    assert "mixture: 70% low (3,000 tokens), 30% high (9,000 tokens)" in capsys.readouterr().out
    rows = metrics(mixed)
    split = open_dataset(data, MIX, 16).train
    for step in range(8):
        x = torch.cat([train_batch(split, 1337, step, micro, 2, 16)[0] for micro in range(4)])
        assert rows[step]["share/high"] == high(x).mean().item()
        assert rows[step]["share/low"] + rows[step]["share/high"] == 1
    for step in (0, 4, 8):
        row = rows[step]
        low, top = row["val/loss/low"], row["val/loss/high"]
        assert row["val/loss"] == pytest.approx(0.7 * low + 0.3 * top, rel=1e-12)
        assert row["val/bits_per_byte/high"] == pytest.approx(top / np.log(2) / 2, rel=1e-12)
        assert row["val/bits_per_byte"] == pytest.approx(row["val/loss"] / np.log(2) / 1.3, rel=1e-12)
    resumed = (*mixed, f"--out_dir={tmp_path / 'resumed'}")
    run(*resumed, "--max_iters=5")
    run(*resumed, "--init_from=resume")
    assert losses(resumed) == losses(mixed) and metrics(resumed)[8]["val/loss/low"] == rows[8]["val/loss/low"]
    assert load_checkpoint(out_dir(mixed) / "ckpt_00000008.pt")["data"]["dataset"] == MIX
    alone = (*mixed, "--dataset=high", f"--out_dir={tmp_path / 'alone'}", "--max_iters=1")
    run(*alone)
    assert metrics(alone)[0]["val/loss"] == rows[0]["val/loss/high"]
    assert not any(key.startswith("share/") for key in metrics(alone)[0])


def test_two_processes_see_the_same(mixed, tmp_path):
    run(*mixed, "--max_iters=3")
    two = (*mixed, f"--out_dir={tmp_path / 'two'}")
    status, _, err = finish(Fork(*two, "--max_iters=3", processes=2))
    assert status == 0, err
    for step, row in metrics(mixed).items():
        other = metrics(two)[step]
        for key in ("train/loss", "val/loss", "val/loss/high", "share/high"):
            assert other.get(key) == pytest.approx(row.get(key), abs=1e-5)


def test_every_part_is_verified(data):
    open_dataset(data, MIX, 16).verify()
    path = data / "high" / "train.bin"
    ids = path.read_bytes()
    path.write_bytes(ids[2:] + ids[:2])
    with pytest.raises(UserError, match=r"high.train\.bin does not have the sha256"):
        open_dataset(data, MIX, 16).verify()
