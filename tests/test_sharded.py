"""checkpoint_format=sharded: the same numbers as in one file, whoever wrote them, and as safe."""

import json
import pickle
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import ROOT, SMALL, Fork, assert_same, finish, losses, metrics, out_dir, run

import export
import measure
import sample
import train
from blockwise import UserError
from blockwise.checkpoint import (
    checkpoint_files,
    config_of,
    load_checkpoint,
    manifests,
    newest_checkpoint,
    prune,
    valid_checkpoints,
)
from blockwise.distributed import World
from blockwise.files import remove, sha256
from blockwise.sharded_files import Stored, make_empty, read_shards, take_tensors, write_shards
from blockwise.study.runner import discard_weights

SHARDED = "--checkpoint_format=sharded"
GENTLE = ("--learning_rate=1e-4", "--min_lr=1e-5", "--lr_decay_iters=24", "--ema_decay=0.9", "--bias=True")

# train.py, where {patch} has changed something; the processes do not share `saves`
SCRIPT = """
import os, runpy, signal, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from blockwise import checkpoint, distributed, sharded_files
write, gather, saves = sharded_files.write_tensors, distributed.World.gather, []
{patch}
sys.argv = ["train.py"] + sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""
# Folders of an earlier version; every process is killed when its shards are written, and nothing says so yet
KILL_IN_SECOND_SAVE_OF_AN_EARLIER_VERSION = """
import test_sharded
checkpoint.write_shards = test_sharded.write_earlier
def killing(*args):
    saves.append(0)
    if len(saves) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return gather(*args)
distributed.World.gather = killing
"""
FULL_DISK_ON_RANK_1_IN_FIRST_SAVE = """
def failing(*args):
    saves.append(0)
    if len(saves) == 1 and os.environ["RANK"] == "1":
        raise OSError(28, "No space left on device")
    return write(*args)
sharded_files.write_tensors = failing
"""


def write_earlier(folder, state, world):
    """write_shards as commit 86bb42b had it: the tensors in files of torch.distributed.checkpoint."""
    world.on_master(make_empty, folder)
    tensors = {}
    tree = take_tensors(state, tensors)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder))
    world.gather(None)
    if world.is_master:
        torch.save(tree, folder / "state.pt")
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in folder.iterdir()}


def patched(tmp_path, patch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), patch=patch))
    return str(script)


def names(folder):
    return sorted(path.name for path in folder.glob("ckpt_*"))


def test_any_processes_continue_any_format(small, tmp_path):
    """One process, FSDP on two (of an earlier version) until it is killed in a save, one, DDP on two, and one again.

    The disk of the second process under DDP is full once.
    """
    words = (*small, *GENTLE, "--n_embd=14")
    alone = (*words, "--max_iters=24", f"--out_dir={tmp_path / 'alone'}")
    run(*alone)
    run(*words, SHARDED, "--max_iters=4")
    more = (*words, "--init_from=auto", SHARDED)

    script = patched(tmp_path, KILL_IN_SECOND_SAVE_OF_AN_EARLIER_VERSION)
    process = Fork(*more, "--parallel=fsdp", "--max_iters=24", processes=2, script=script)
    assert finish(process)[0] == -signal.SIGKILL
    pairs = ["ckpt_00000004", "ckpt_00000004.json", "ckpt_00000008", "ckpt_00000008.json"]
    assert names(out_dir(words)) == [*pairs, "ckpt_00000012.tmp"]
    assert len(list((out_dir(words) / "ckpt_00000012.tmp").glob("__*.distcp"))) == 2

    run(*words, "--init_from=auto", "--max_iters=12")
    pairs = [*pairs[2:], "ckpt_00000012.json", "ckpt_00000012.pt"]
    assert names(out_dir(words)) == pairs

    script = patched(tmp_path, FULL_DISK_ON_RANK_1_IN_FIRST_SAVE)
    status, _, err = finish(Fork(*more, "--max_iters=20", processes=2, script=script))
    assert status == 0 and len(err.splitlines()) == 1, err
    assert "ckpt_00000016 could not be written: [Errno 28]" in err and "the run continues" in err
    assert names(out_dir(words)) == [*pairs[2:], "ckpt_00000020", "ckpt_00000020.json"]

    run(*words, "--init_from=resume", "--max_iters=24")
    assert list(metrics(words)) == list(metrics(alone))
    for step, row in metrics(alone).items():
        for key in (key for key in row if "loss" in key):
            assert metrics(words)[step][key] == pytest.approx(row[key], abs=1e-5), (step, key)


def test_four_processes_of_which_one_holds_nothing(small, tmp_path):
    """Vectors of 6 numbers lie on three of them. What they have read and written again is what was there."""
    words = (*small, *GENTLE, "--n_embd=6", "--n_layer=1", "--eval_iters=1", SHARDED)
    run(*words, "--max_iters=1")
    more = (*words, "--init_from=resume", "--learning_rate=0", "--min_lr=0", "--max_iters=2")
    status, _, err = finish(Fork(*more, "--parallel=fsdp", processes=4))
    assert status == 0, err
    first, second = map(load_checkpoint, valid_checkpoints(out_dir(words)))
    assert second["step"] == 2 and len(list((out_dir(words) / "ckpt_00000002").glob("shard_*.pt"))) == 4
    assert_same(first["model"], second["model"])
    run(*more, "--max_iters=3")


def test_both_formats_hold_the_same(small, tmp_path, no_figures, capsys):
    """Checkpoint, export, text and measurement; a resumed run bit for bit."""
    full = (*small, "--ema_decay=0.9", "--optimizer=muon", f"--out_dir={tmp_path / 'full'}")
    both = full, (*full, SHARDED, f"--out_dir={tmp_path / 'sharded'}")
    for words in both:
        run(*words)
    folders = [out_dir(words) for words in both]
    paths = [newest_checkpoint(folder) for folder in folders]
    assert [path.name for path in paths] == ["ckpt_00000008.pt", "ckpt_00000008"]
    full, sharded = map(load_checkpoint, paths)
    for saved in (full, sharded):
        saved["config"] |= {"out_dir": "", "checkpoint_format": ""}
    assert_same(full, sharded)
    assert config_of(paths[1]) == config_of(paths[1].with_name("ckpt_00000008")) and config_of(paths[1])["n_layer"] == 2
    tied = {sharded["model"][name].data_ptr() for name in ("lm_head.weight", "tok_emb.weight")}
    assert len(tied) == 1

    outputs = []
    for folder in folders:
        to = tmp_path / f"hf_{folder.name}"
        export.main(export.ExportConfig(out_dir=str(folder), to=str(to), ema=True))
        sharpness = measure.SharpnessConfig(out_dir=str(folder), batches=1, draws=1, batch_size=2, checkpoints="all")
        measure.main(sharpness)
        capsys.readouterr()
        sample.main(sample.SampleConfig(out_dir=str(folder), num_samples=1, max_new_tokens=20))
        measured = [json.loads(path.read_text()) | {"seconds": 0} for path in sorted(folder.glob("sharpness*.json"))]
        outputs.append(((to / "model.safetensors").read_bytes(), capsys.readouterr().out, measured))
    assert outputs[0] == outputs[1] and [row["step"] for row in outputs[0][2]] == [4, 8]
    for words in both:
        run(*words, "--init_from=resume", "--max_iters=12")
    assert losses(both[0]) == losses(both[1])


def damage_file(path, how):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:-10], "flipped": data}[how])


DAMAGES = [
    ("shard_00000.pt", "flipped"), ("shard_00000.pt", "missing"), ("state.pt", "truncated"), ("state.pt", "flipped"),
    ("", "missing"), ("../ckpt_00000008.json", "truncated"),
]  # fmt: skip


@pytest.fixture(scope="module")
def sharded_run(data_dir, tmp_path_factory):
    """A folder with two sharded checkpoints, to be copied."""
    folder = tmp_path_factory.mktemp("sharded") / "out"
    run(*SMALL, SHARDED, f"--data_dir={data_dir}", f"--out_dir={folder}")
    return folder


@pytest.mark.parametrize("name, how", DAMAGES)
def test_a_damaged_file_is_a_damaged_checkpoint(sharded_run, tmp_path, capsys, name, how):
    shutil.copytree(sharded_run, tmp_path / "out")
    path = tmp_path / "out" / "ckpt_00000008" / name
    if how == "missing":
        remove(path)
    else:
        damage_file(path, how)
    assert newest_checkpoint(tmp_path / "out").name == "ckpt_00000004"
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "ckpt_00000008 is damaged (" in said
    if name:
        assert how == "missing" or "json" in name or f" {name} " in said.replace("(", " ")


def test_what_follows_a_damaged_checkpoint(small, sharded_run):
    """Its steps come again, in either format, and again after a second damage."""
    out = out_dir(small)
    shutil.copytree(sharded_run, out)
    rows = losses(small)
    damaged = ["ckpt_00000008.damaged", "ckpt_00000008.json.damaged"]
    for words, names_of_8 in (
        ((SHARDED,), ["ckpt_00000008", "ckpt_00000008.json"]), ((), ["ckpt_00000008.json", "ckpt_00000008.pt"])
    ):  # fmt: skip
        damage_file(out / "ckpt_00000008" / "state.pt", "flipped")
        run(*small, *words, "--init_from=resume")
        assert losses(small) == rows
        assert names(out) == sorted(["ckpt_00000004", "ckpt_00000004.json", *names_of_8, *damaged])


def test_files_without_their_manifests(small, sharded_run, capsys):
    """The newest folder is used if it is whole; what is not whole is an error, not a fresh start."""
    out = out_dir(small)
    shutil.copytree(sharded_run, out)
    for path in manifests(out):
        path.unlink()
    assert newest_checkpoint(out).name == "ckpt_00000008" and "has no manifest beside it" in capsys.readouterr().err
    for path in checkpoint_files(out):
        damage_file(path / "shard_00000.pt", "flipped")
    with pytest.raises(UserError, match="ckpt_00000008 is incomplete and has no manifest"):
        run(*small, "--init_from=auto")


def test_old_ones_are_deleted_moved_and_discarded(small, sharded_run):
    out = out_dir(small)
    shutil.copytree(sharded_run, out)
    run(*small, SHARDED, "--init_from=resume", "--max_iters=12")
    assert names(out) == ["ckpt_00000008", "ckpt_00000008.json", "ckpt_00000012", "ckpt_00000012.json"]
    stated = json.loads((out / "ckpt_00000008.json").read_text()) | {"val_loss": 0.0}
    (out / "ckpt_00000008.json").write_text(json.dumps(stated))
    run(*small, "--init_from=resume", "--max_iters=20", "--always_save_checkpoint=False")
    assert [path.name for path in manifests(out)] == [f"ckpt_{step:08d}.json" for step in (8, 16, 20)]
    prune(out, 1, True)
    assert names(out) == ["ckpt_00000008", "ckpt_00000008.json", "ckpt_00000020.json", "ckpt_00000020.pt"]
    run(*small, SHARDED, "--max_iters=2")
    (old,) = out.glob("old-*")
    assert names(old) == ["ckpt_00000008", "ckpt_00000008.json", "ckpt_00000020.json", "ckpt_00000020.pt"]
    assert names(out) == ["ckpt_00000002", "ckpt_00000002.json"]
    discard_weights(SimpleNamespace(folder=out, config=SimpleNamespace(keep_checkpoints=2)))
    assert names(out) == [] and names(old)


def test_an_exception_saves_in_one_file(small, monkeypatch):
    """By this process alone: the others may be anywhere."""

    def fail(*args):
        raise RuntimeError("no more")

    monkeypatch.setattr(train, "BlockStats", fail)
    with pytest.raises(RuntimeError, match="no more"):
        run(*small, SHARDED)
    assert newest_checkpoint(out_dir(small)).name == "ckpt_00000000.pt"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_part_of_a_tensor_and_code_that_is_not_run(tmp_path):
    """A Stored reads when it is asked; an index that names a function is refused before it is called."""
    state = {"model": {"a": torch.arange(6.0).view(3, 2)}, "optimizer": [1, torch.tensor(2)], "about": {"b": None}}
    new, earlier = tmp_path / "new", tmp_path / "earlier"
    assert sorted(write_shards(new, state, World(0, 1, torch.device("cpu")))) == ["shard_00000.pt", "state.pt"]
    tensors = {"model/a": state["model"]["a"], "optimizer/1": state["optimizer"][1]}
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(earlier))
    named = {"model": {"a": {"tensor": "model/a"}}, "optimizer": [1, {"tensor": "optimizer/1"}], "about": {"b": None}}
    torch.save(named, earlier / "state.pt")
    for folder in (new, earlier):
        assert_same(read_shards(folder), state)
        stored = read_shards(folder, on_disk=("model",))["model"]["a"]
        assert isinstance(stored, Stored) and stored.shape == torch.Size([3, 2])
        assert torch.equal(stored[1:], state["model"]["a"][1:]) and stored[3:].shape == (0, 2)

    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'evil')!r}, 'w')",)

    (earlier / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"refers to builtins\.exec"):
        read_shards(earlier)
    assert not (tmp_path / "evil").exists()
