"""What happens around a run does not destroy it: consoles, signals, launchers, other data or versions, lost files."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Fork, assert_same, finish, losses, metrics, out_dir, run, wait_for

import export
import measure
import sample
from blockwise import UserError, checkpoint, exit_on_user_error, files, loader, print0
from blockwise.checkpoint import load_checkpoint, manifests, newest_checkpoint, save_checkpoint
from blockwise.data.shards import check_space
from blockwise.data.writing import write_dataset
from blockwise.distributed import launched_as
from blockwise.files import FolderLock
from blockwise.logger import MetricsFile
from blockwise.sharded_files import load_mapped
from blockwise.signals import StopRequest
from blockwise.tokenizer import BYTES
from blockwise.training.output import Output
from model import Transformer

ENDLESS = ("--max_iters=100000", "--eval_interval=50000")


# The console


def unread(script, *words):
    """A script in a process whose standard output nobody reads; returns (exit status, stderr)."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, script, *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writing)
    return done.returncode, done.stderr


def test_a_pipe_that_nobody_reads(small):
    assert unread("train.py", *small) == (0, "")
    assert list(metrics(small)) == list(range(9)) and newest_checkpoint(out_dir(small)).stem == "ckpt_00000008"


def test_a_reader_that_has_had_enough_ends_a_command_quietly(finished_run, tmp_path):
    assert unread("plot.py", "curves", finished_run, f"--out={tmp_path / 'x.png'}") == (0, "")


def entry(action, encoding, tmp_path, monkeypatch):
    """What an entry point that does `action` writes to a console of this encoding."""
    with open(tmp_path / "console", "w", encoding=encoding) as console:
        monkeypatch.setattr(sys, "stdout", console)
        with exit_on_user_error():
            action()
    return (tmp_path / "console").read_bytes()


@pytest.mark.parametrize(
    "encoding, text, expected",
    [("ascii", "é 🙂", rb"\xe9 \U0001f642"), ("latin-1", "é 你", b"\xe9 \\u4f60"), ("utf-8", "a\udcff", rb"a\udcff"),
     ("utf-8", "é", "é".encode())],
)  # fmt: skip
def test_a_character_that_the_console_lacks_is_an_escape(tmp_path, monkeypatch, encoding, text, expected):
    assert entry(lambda: print(text), encoding, tmp_path, monkeypatch) == expected + b"\n"


def test_a_broken_pipe_of_something_else_is_still_an_error():
    with pytest.raises(BrokenPipeError), exit_on_user_error():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_preparation_goes_on_without_its_console(tmp_path):
    """Nothing in a data set depends on who reads the messages."""
    (tmp_path / "x.txt").write_text("the cat sat on a mat\n" * 40)
    with open("/dev/full", "w") as full:
        words = ["data/text/prepare.py", tmp_path / "x.txt", "--name=x", "--tokenizer=bytes", f"--data_dir={tmp_path}"]
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x" / "meta.json").exists()


def test_a_line_that_cannot_be_printed_is_dropped_alone(tmp_path, monkeypatch):
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        for text in ("before", "naïve", "after"):
            print0(text)
    assert (tmp_path / "log").read_text().splitlines() == ["before", "after"]


# File systems that lack a guarantee: network and container ones


def refuses(number, when=lambda *arguments: True, real=None):
    """A call that the file system answers with this errno."""

    def call(*arguments, **options):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(files.fcntl, "flock", refuses(number))
    with FolderLock(tmp_path / "a" / "b", "out_dir=b"):
        files.write_text(tmp_path / "a" / "b" / "x", "text")
    assert f"warning: out_dir=b has no file locks ({os.strerror(number)})" in capsys.readouterr().err


def test_a_lock_that_is_taken_or_broken_is_still_an_error(tmp_path, monkeypatch):
    with FolderLock(tmp_path), pytest.raises(files.InUse, match="is in use by another process"):
        FolderLock(tmp_path).acquire()
    monkeypatch.setattr(files.fcntl, "flock", refuses(errno.EIO))
    with pytest.raises(UserError, match="cannot be written: Input/output error"):
        FolderLock(tmp_path).acquire()


def test_a_folder_that_cannot_be_written_is_named_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    for name, reason in {
        "link": f"link is a link to {tmp_path / 'gone'}, which does not exist",
        "file": "file is not a folder",
        "file/inside": "/file is not a folder",
    }.items():
        with pytest.raises(UserError, match=f"^out_dir=o cannot be written: .*{re.escape(reason)}$"):
            FolderLock(tmp_path / name, "out_dir=o").acquire()
    theirs = tmp_path / "theirs" / ".lock"
    denied = PermissionError(errno.EACCES, "Permission denied", str(theirs))
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(denied))
    with pytest.raises(UserError, match=f"{theirs}: Permission denied"):
        FolderLock(tmp_path / "theirs").acquire()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_what_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr(files.os, "fsync", refuses(number))
    files.write_text(tmp_path / "x", "text")
    assert contents_of(tmp_path) == {"x": "text"}
    monkeypatch.setattr(files.os, "fsync", refuses(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        files.write_text(tmp_path / "x", "other")
    assert contents_of(tmp_path) == {"x": "text"}


def contents_of(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EEXIST, errno.ENOSYS])
def test_where_nothing_can_be_renamed_over_a_file(tmp_path, monkeypatch, number):
    real = os.replace
    monkeypatch.setattr(files.os, "replace", refuses(number, lambda old, new: os.path.exists(new), real))
    for text in ("first", "second"):
        files.write_text(tmp_path / "x", text)
    assert contents_of(tmp_path) == {"x": "second"}
    monkeypatch.setattr(files.os, "replace", refuses(errno.EBUSY))
    with pytest.raises(OSError, match="busy"):
        files.write_text(tmp_path / "x", "third")
    assert contents_of(tmp_path) == {"x": "second"}


def test_data_that_cannot_be_mapped_is_read(small, monkeypatch, capsys):
    path = Path(next(word for word in small if word.startswith("--data_dir="))[11:])
    split = loader.Split(next(path.glob("*/val.bin")), tokens=0, bound=256)
    mapped = split.ids().tolist()
    monkeypatch.setattr(loader.np, "memmap", refuses(errno.ENODEV))
    assert split.ids().tolist() == split.ids().tolist() == mapped
    assert capsys.readouterr().err.count("cannot be mapped (No such device): reading it into memory") == 1
    monkeypatch.setattr(loader.np, "memmap", refuses(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        loader.Split(split.path, tokens=0, bound=256).ids()


def test_a_checkpoint_that_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    torch.save({"a": torch.arange(3)}, tmp_path / "x.pt")
    real = torch.load

    def load(path, mmap=False, **options):
        if mmap:
            raise RuntimeError(f"unable to mmap 100 bytes from file <{path}>: No such device (19)")
        return real(path, **options)

    monkeypatch.setattr(torch, "load", load)
    assert load_mapped(tmp_path / "x.pt")["a"].tolist() == [0, 1, 2]


def test_free_space_that_nobody_knows_refuses_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    assert files.free_space(tmp_path) is None
    check_space(tmp_path, 1 << 20, 1, 1 << 10, 256)
    assert "(unknown free)" in capsys.readouterr().out
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(UserError, match="needs about"):
        check_space(tmp_path, 1 << 30, 1, 1 << 10, 256)


class Stale:
    """A handle that answers ESTALE."""

    def __getattr__(self, name):
        return refuses(errno.ESTALE)


def test_a_stale_log_is_opened_anew(tmp_path, capsys):
    log = MetricsFile(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 0})
    log.file = Stale()
    log.write({"step": 1})
    log.write({"step": 2})
    assert log.flush(to_disk=True)
    log.write({"step": 3})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "rows wait in memory, the run goes on" in lines[0] and "written again" in lines[1]


def test_a_log_that_is_lost_does_not_end_the_run(small, monkeypatch, capsys):
    """Every handle on it is stale: all checkpoints are written, and the rows that are missing are told."""
    real = MetricsFile.reopen
    monkeypatch.setattr(MetricsFile, "reopen", lambda log: setattr(log, "file", Stale()))
    monkeypatch.setattr(MetricsFile, "__init__", began_stale(MetricsFile.__init__))
    assert run(*small) == 0
    err = capsys.readouterr().err
    assert newest_checkpoint(out_dir(small)).stem == "ckpt_00000008"
    assert err.count("its rows wait in memory") == 1 and "metrics.jsonl lacks the last 9 rows" in err
    monkeypatch.setattr(MetricsFile, "reopen", real)


def began_stale(init):
    def begin(log, *arguments):
        init(log, *arguments)
        log.file = Stale()

    return begin


# Signals and errors


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_signal_is_a_request_to_stop(name):
    number = getattr(signal, name)
    before = signal.signal(number, lambda *_: None)  # or one that is not heard would end the tests
    stop = StopRequest()
    signal.raise_signal(number)
    stop.release()
    signal.signal(number, before)
    assert stop and stop.signal == name


def test_nohup_stays_nohup(monkeypatch):
    """A process that was told to ignore SIGHUP goes on when its terminal closes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    signal.raise_signal(signal.SIGHUP)
    stop.release()
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN and not stop


def test_a_run_saves_and_stops(small):
    process = Fork(*small, *ENDLESS)
    wait_for(out_dir(small) / "metrics.jsonl", '"step": 5', process)
    process.send_signal(signal.SIGHUP)
    status, out, err = finish(process)
    assert status == 0 and "stopped by SIGHUP" in out, err
    assert int(newest_checkpoint(out_dir(small)).stem[5:]) == max(metrics(small)) + 1


@pytest.mark.parametrize("where", ["forward", "update"])
def test_an_exception_saves_first(small, finished_run, monkeypatch, where, capsys):
    """The state before its step, from which a run goes on exactly; nothing in the middle of an update."""
    owners = {"forward": (Transformer, "forward"), "update": (torch.nn.utils, "clip_grads_with_norm_")}
    calls, (owner, name) = [], owners[where]
    original = getattr(owner, name)

    def failing(*args, **more):
        calls.append(1)
        if len(calls) == (31 if where == "forward" else 7):  # of step 6; forward passes of evaluations count too
            raise RuntimeError("no more")
        return original(*args, **more)

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(RuntimeError, match="no more"):
        run(*small)
    monkeypatch.undo()
    saved = newest_checkpoint(out_dir(small))
    said = capsys.readouterr().err
    if where == "update":
        assert saved.stem == "ckpt_00000004" and "saved" not in said
    else:
        assert f"RuntimeError in step {int(saved.stem[5:])}: saved the state before that step" in said
        assert int(saved.stem[5:]) > 4
    run(*small, "--init_from=resume")
    assert losses(small) == losses([f"--out_dir={finished_run}"])


# The launcher's environment


@pytest.mark.parametrize(
    "variables,problem",
    [
        ({"RANK": "1"}, "WORLD_SIZE is not set, with RANK=1"),
        ({"WORLD_SIZE": "2"}, "RANK is not set, with WORLD_SIZE=2"),
        ({"LOCAL_RANK": "0"}, "RANK is not set"),
        ({"RANK": "foo", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is no number, with RANK=foo"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is no number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "impossible ranks"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "impossible ranks"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "impossible ranks"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "without MASTER_ADDR"),
    ],
)
def test_impossible_variables(monkeypatch, variables, problem):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert launched_as() == (0, 1, 0)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=problem):
        launched_as()


def test_half_set_variables_are_one_line_on_every_rank(small):
    status, _, err = finish(Fork(*small, env={"RANK": "1"}))
    assert status == 2 and err.startswith("error: WORLD_SIZE is not set") and len(err.splitlines()) == 1
    assert not out_dir(small).exists()


# Other data


@pytest.fixture
def other_data(data_dir, tmp_path):
    """The data set `tiny` in another folder, with another text; a function that says of what tokenizer."""

    def make(tokenizer=BYTES, shift=1):
        ids = {split: [(i * 7 + shift) % 250 for i in range(n)] for split, n in (("train", 3000), ("val", 600))}
        write_dataset(tmp_path / "other" / "tiny", ids, tokenizer, "made up")
        return f"--data_dir={tmp_path / 'other'}"

    return make


CHARS = {"tokenizer": "chars", "vocab_size": 256, "chars": [chr(i + 1) for i in range(256)]}


def test_another_tokenizer_is_refused(finished, other_data, no_figures):
    before = {path.name: path.read_bytes() for path in out_dir(finished).iterdir()}
    other = other_data(CHARS)
    with pytest.raises(UserError, match=r"belongs to another tokenizer \(bytes\) than data set tiny \(chars\)"):
        run(*finished, other, "--init_from=resume")
    folder = other.removeprefix("--data_dir=")
    with pytest.raises(UserError, match="another tokenizer"):
        measure.main(measure.SharpnessConfig(out_dir=str(out_dir(finished)), data_dir=folder, batches=1, batch_size=1))
    assert {path.name: path.read_bytes() for path in out_dir(finished).iterdir()} == before


def test_weights_from_elsewhere_and_another_tokenizer(small, finished_run, other_data, tmp_path):
    export.main(export.ExportConfig(out_dir=str(finished_run), to=str(tmp_path / "hf")))
    words = (*small, f"--init_from=hf:{tmp_path / 'hf'}", "--max_iters=1", f"--out_dir={tmp_path / 'fine'}")
    assert run(*words) == 0
    with pytest.raises(UserError, match="belongs to another tokenizer"):
        run(*words, other_data(CHARS), f"--out_dir={tmp_path / 'none'}")
    assert not (tmp_path / "none" / "metrics.jsonl").exists()


def test_other_text_starts_the_best_loss_over(small, other_data, capsys):
    """The pattern is easy, so that what follows is worse than the best of before, and would never be saved."""
    best = ("--always_save_checkpoint=False", "--eval_interval=2")
    run(*small, *best)
    other = other_data()
    run(*small, *best, other, "--init_from=resume", "--max_iters=12")
    assert "has seen another train.bin and val.bin than data set tiny" in capsys.readouterr().out
    checkpoint = load_checkpoint(newest_checkpoint(out_dir(small)))
    after = [row["val/loss"] for step, row in metrics(small).items() if step >= 8 and "val/loss" in row]
    assert checkpoint["best_val_loss"] == min(after)
    kept = [json.loads(path.read_text())["val_loss"] for path in manifests(out_dir(small))]
    assert min(kept) == min(after)


def test_the_best_of_other_text_is_not_kept(small, other_data):
    best = ("--always_save_checkpoint=False", "--eval_interval=2")
    run(*small, *best, other_data())
    run(*small, *best, "--init_from=resume", "--max_iters=14", "--learning_rate=0.3", "--decay_lr=False")
    kept = [json.loads(path.read_text()) for path in manifests(out_dir(small))]
    best = min((row["val/loss"], step) for step, row in metrics(small).items() if step >= 8 and "val/loss" in row)
    assert [one["step"] for one in kept] == [best[1], 14] and kept[0]["val_loss"] == best[0]


# Lost and broken files


@pytest.mark.parametrize("broken", [b"", b"\0" * 40, b"{", b"[1]", b'{"step": "x"}'])
def test_a_broken_line_takes_no_others_with_it(finished, capsys, broken):
    path = out_dir(finished) / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:3], broken, *lines[3:]]) + b'{"step": 9')  # and a torn last line
    MetricsFile(path, 8)
    assert path.read_bytes() == b"".join(line + b"\n" for line in lines[:8])
    assert "dropped 1 broken lines, kept 8 rows" in capsys.readouterr().err


def test_weights_without_a_manifest_are_used(small, finished_run, capsys):
    run(*small, "--max_iters=5")
    for path in manifests(out_dir(small)):
        path.unlink()
    for init in ("auto", "resume"):
        run(*small, f"--init_from={init}", "--max_iters=8")
        captured = capsys.readouterr()
        assert "resuming from" in captured.out
        assert (init == "auto") == ("has no manifest beside it" in captured.err)  # then it has saved another one
    assert losses(small)[7] == losses([f"--out_dir={finished_run}"])[7]


def test_half_written_weights_without_a_manifest_are_no_fresh_start(finished):
    for path in manifests(out_dir(finished)):
        path.unlink()
    for path in out_dir(finished).glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is incomplete and has no manifest"):
        run(*finished, "--init_from=auto")


def test_an_unreadable_checkpoint_is_not_called_damaged(finished, monkeypatch):
    newest = newest_checkpoint(out_dir(finished))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *a, **k: path != newest and access(path, *a, **k))
    with pytest.raises(UserError, match=r"ckpt_00000008.pt cannot be read: permission denied"):
        run(*finished, "--init_from=resume", "--max_iters=10")
    assert newest.exists() and not list(out_dir(finished).glob("*.damaged"))


# Other versions


def edited(words, edit):
    """Change the newest checkpoint of a run, which stays without a manifest."""
    path = newest_checkpoint(out_dir(words))
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    for manifest in manifests(out_dir(words)):
        manifest.unlink()
    torch.save(checkpoint, path)


def commands(words, tmp_path):
    """train, sample, export, measure on a run's newest checkpoint."""
    out = str(out_dir(words))
    return {
        "train": lambda: run(*words, "--init_from=resume", "--max_iters=10"),
        "sample": lambda: sample.main(sample.SampleConfig(out_dir=out, num_samples=1, max_new_tokens=2, device="cpu")),
        "export": lambda: export.main(export.ExportConfig(out_dir=out, to=str(tmp_path / "hf"))),
        "measure": lambda: measure.main(measure.CurvatureConfig(out_dir=out, batch_size=2, products=2, device="cpu")),
    }


@pytest.mark.parametrize(
    "edit,problem",
    [
        (lambda c: c["model_config"].update(attn_softcap=5.0), "attn_softcap=5.0, which this version does not know"),
        (lambda c: c.update(version=99), "is of version 99, this project reads versions up to 2"),
        (lambda c: c.pop("model_config"), "is not a checkpoint of this project: KeyError"),
        (lambda c: c.pop("tokenizer"), "is not a checkpoint of this project: KeyError"),
    ],
)
def test_a_newer_or_foreign_checkpoint_is_one_line(finished, tmp_path, no_figures, edit, problem):
    edited(finished, edit)
    for command in commands(finished, tmp_path).values():
        with pytest.raises(UserError, match=problem):
            command()


def test_an_older_checkpoint_works_everywhere(finished, tmp_path, no_figures):
    """Of the first version: without the keys that came later, in config, architecture and checkpoint."""

    def age(checkpoint):
        for key in ("version", "skipped_in_a_row", "wandb_id", "layers", "auto_mult", "eigenvector", "ema", "data"):
            del checkpoint[key]
        for key in ("qk_norm", "logit_softcap", "qk_clip", "z_loss"):
            del checkpoint["model_config"][key]
        for key in ("warmup_scaled", "wsd_boost", "arch_warmup", "ema_decay", "auto_mult_step", "qk_norm", "z_loss"):
            del checkpoint["config"][key]

    edited(finished, age)
    for name, command in commands(finished, tmp_path).items():
        assert command() in (0, None), name
    assert list(metrics(finished)) == list(range(11))


def test_a_checkpoint_is_hashed_while_it_is_written(tmp_path, monkeypatch):
    def reading(path):
        raise AssertionError("the file was read again")

    state = {"step": 3, "config": {}, "data": {"val": "x"}, "model": {"w": torch.arange(3e5)}, "list": [1, "two"]}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sha256", reading)
        save_checkpoint(tmp_path, state, 1.5, keep=2)
    path = tmp_path / "ckpt_00000003.pt"
    stated = json.loads(path.with_suffix(".json").read_text())
    assert stated["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stated["bytes"] == path.stat().st_size and newest_checkpoint(tmp_path) == path


def test_two_ranks_never_write_one_checkpoint_at_once(tmp_path, monkeypatch):
    """As after an error on both; the second one sees that the first has committed it."""
    write, begun, ended = checkpoint.write_tensors, [], []

    def slow(path, content):
        begun.append(time.sleep(0.2))
        stated = write(path, content)
        ended.append(len(begun))
        return stated

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    state = {"step": 3, "config": {}, "model": {"w": torch.arange(9)}}
    ranks = [threading.Thread(target=save_checkpoint, args=(tmp_path, state, None, 2)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert ended == [1] and newest_checkpoint(tmp_path).name == "ckpt_00000003.pt"


def test_a_checkpoint_that_a_thread_writes_is_of_its_own_step(small, finished_run, monkeypatch, capsys):
    """It begins to be written two steps later. A failure is a warning; that of the last checkpoint ends the run."""
    write, rows, waits = checkpoint.write_tensors, out_dir(small) / "metrics.jsonl", []

    def late(path, content):
        if path.stem == "ckpt_00000004":
            while '"step": 5' not in rows.read_text() and len(waits) < 1000:
                waits.append(time.sleep(0.01))
        return write(path, content)

    monkeypatch.setattr(checkpoint, "write_tensors", late)
    monkeypatch.setattr(Output, "in_background", True)
    run(*small)
    assert len(waits) < 1000 and losses(small) == losses([f"--out_dir={finished_run}"])
    for name in ("ckpt_00000004.pt", "ckpt_00000008.pt"):
        first, second = (load_checkpoint(folder / name) for folder in (finished_run, out_dir(small)))
        for key in ("model", "optimizer"):
            assert_same(first[key], second[key])
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *args: os.stat("/nowhere"))
    with pytest.raises(checkpoint.SaveError, match=r"ckpt_00000008\.pt could not be written"):
        run(*small)
    assert capsys.readouterr().err.count("the run continues without it") == 1


def test_a_mapped_checkpoint_is_the_file_and_never_changes_it(small):
    run(*small, "--curvature_interval=4")
    path = newest_checkpoint(out_dir(small))
    before = path.read_bytes()
    whole, mapped = load_checkpoint(path), load_checkpoint(path, mapped=True)
    assert whole["model"].keys() == mapped["model"].keys()
    assert all(torch.equal(weight, whole["model"][name]) for name, weight in mapped["model"].items())
    for weight in mapped["model"].values():
        weight.zero_()
    assert path.read_bytes() == before
    with open(path, "r+b") as file:  # what a run holds for longer than the file's life is not a page of it
        file.write(bytes(len(before)))
    vectors = whole["eigenvector"], mapped["eigenvector"]
    assert vectors[0] and all(torch.equal(part, vectors[0][name]) for name, part in vectors[1].items())
