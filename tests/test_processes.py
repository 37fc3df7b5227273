"""Whole runs in processes of their own: several at once, killed, stopped, damaged, and every mistake's exit status."""

import json
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from conftest import (
    ROOT,
    SMALL,
    Fork,
    finish,
    kill_all,
    losses,
    metrics,
    out_dir,
    run,
    start,
    state_of,
    wait_for,
    workers_of,
)
from helpers import Stop

import train
from blockwise import UserError

LONG = ("--max_iters=40", "--lr_decay_iters=40", "--eval_interval=10")


@pytest.mark.parametrize("processes", [2, 4])
def test_world_size_changes_nothing(small, processes, tmp_path):
    """Same tokens and dropout in every step: losses agree to 1e-5 while no block's rate exceeds 1e-3."""
    words = (*small, "--learning_rate=1e-4", "--min_lr=1e-5", "--max_iters=20", "--lr_decay_iters=20")
    alone = (*words, f"--out_dir={tmp_path / 'alone'}")
    run(*alone)
    status, _, err = finish(Fork(*words, processes=processes))
    assert status == 0, err
    a, b = losses(alone), losses(words)
    assert list(a) == list(b)
    for step in a:
        assert b[step] == pytest.approx(a[step], abs=1e-5), step


@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_anywhere_and_resumed_is_exact(small, processes, tmp_path):
    """SIGKILL for everybody at whatever they are doing, twice; the losses are those of an undisturbed run."""
    straight = (*small, *LONG, f"--out_dir={tmp_path / 'straight'}")
    words = (*small, *LONG, "--init_from=auto")
    status, _, err = finish(Fork(*straight, processes=processes))
    assert status == 0, err
    dice = random.Random(processes)
    for _ in range(1 if processes == 4 else 2):
        process = Fork(*words, processes=processes)
        step = dice.randrange(5, 35)
        wait_for(out_dir(words) / "metrics.jsonl", f'"step": {step}', process)
        time.sleep(dice.random() * 0.05)
        kill_all(process)
    status, _, err = finish(Fork(*words, processes=processes))
    assert status == 0, err
    assert losses(words) == losses(straight)


@pytest.mark.parametrize("optimizer, processes", [("adamw", 2), ("muon", 1)])
def test_killed_in_an_architecture_warm_up(small, tmp_path, optimizer, processes):
    """SIGKILL between the steps 10 and 35, at which layers are put to work."""
    words = (
        *small, *LONG, "--n_layer=4", "--arch_warmup=True", "--arch_warmup_groups=2", "--arch_warmup_interval=25",
        "--warmup_iters=10", "--eval_interval=4", "--qk_clip=0.01", f"--optimizer={optimizer}",
    )  # fmt: skip
    straight = (*words, f"--out_dir={tmp_path / 'straight'}")
    status, _, err = finish(Fork(*straight, processes=processes)) if processes > 1 else (run(*straight), "", "")
    assert status == 0, err
    process = Fork(*words, processes=processes)
    wait_for(out_dir(words) / "metrics.jsonl", '"step": 14', process)
    kill_all(process)
    status, out, err = finish(Fork(*words, "--init_from=auto", processes=processes))
    assert status == 0 and "3 of 4 layers active, 4 from step 35" in out, err
    assert losses(words) == losses(straight)


KILL_IN_SAVE = """
import os, runpy, signal, sys
import blockwise.checkpoint as c
replace, calls = os.replace, []
def killing(source, target):
    if "ckpt" in str(source):
        calls.append(source)
        if len(calls) == {n}:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killing
sys.argv = ["train.py"] + sys.argv[1:]
sys.path.insert(0, {root!r})
import blockwise.training.output as output
if {background}:
    output.Output.in_background = True
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("n", [1, 3, 4])  # before the first save's rename, the second's, and its manifest's
def test_killed_in_the_middle_of_a_save(small, finished_run, tmp_path, n):
    """The first save is written by a thread, while the training goes on, as on CUDA; the last one is waited for."""
    script = tmp_path / "killing.py"
    script.write_text(KILL_IN_SAVE.format(n=n, root=str(ROOT), background=n < 4))
    status, _, _ = finish(Fork(*small, script=str(script)))
    assert status == -signal.SIGKILL
    run(*small, "--init_from=auto")
    assert losses(small) == losses([f"--out_dir={finished_run}"])


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:-10], "empty": b"", "flipped": data}[how])


DAMAGES = [(".pt", "truncated"), (".pt", "empty"), (".pt", "flipped"), (".json", "truncated"), (".json", "empty")]


@pytest.fixture(scope="module")
def longer(data_dir, tmp_path_factory):
    """The losses of SMALL in 12 steps."""
    words = (*SMALL, f"--data_dir={data_dir}", f"--out_dir={tmp_path_factory.mktemp('longer')}", "--max_iters=12")
    run(*words)
    return losses(words)


@pytest.mark.parametrize("suffix, how", DAMAGES)
def test_damaged_checkpoint(finished, longer, capsys, suffix, how):
    folder = out_dir(finished)
    damage(folder / f"ckpt_00000008{suffix}", how)
    run(*finished, "--max_iters=12", "--init_from=auto")
    captured = capsys.readouterr()
    assert "ckpt_00000008.pt is damaged" in captured.err and "resuming from" in captured.out
    assert losses(finished) == longer
    assert (folder / "ckpt_00000008.pt").exists() and (folder / f"ckpt_00000008{suffix}.damaged").exists()


@pytest.mark.parametrize("init", ["auto", "resume"])
def test_all_checkpoints_damaged_is_no_fresh_start(finished, init):
    before = (out_dir(finished) / "metrics.jsonl").read_bytes()
    for path in out_dir(finished).glob("ckpt_*.pt"):
        damage(path, "flipped")
    with pytest.raises(UserError, match="every checkpoint"):
        run(*finished, f"--init_from={init}")
    assert (out_dir(finished) / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("processes, number", [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_signal_saves_and_exits_0(small, tmp_path, processes, number):
    """The signal comes to every worker, several times over."""
    process = Fork(*small, *LONG, "--max_iters=100000", processes=processes)
    wait_for(out_dir(small) / "metrics.jsonl", '"step": 12', process)
    for _ in range(3):
        for pid in process.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.05)
    status, out, err = finish(process)
    assert status == 0, err
    assert f"stopped by {number.name}" in out
    step = max(int(p.stem[5:]) for p in out_dir(small).glob("ckpt_*.json"))
    assert list(metrics(small)) == list(range(step))
    if processes == 1:
        straight = (*small, *LONG, f"--out_dir={tmp_path / 'straight'}")
        run(*straight, "--max_iters=100000", stop=Stop(straight, step + 3))
        status, _, err = finish(Fork(*small, *LONG, "--init_from=resume", f"--max_iters={step + 2}"))
        assert status == 0, err
        a, b = losses(straight), losses(small)
        assert all(a[s][0] == b[s][0] for s in range(step + 2))


def handles(pid, number):
    """Whether a process has a handler of its own for a signal."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(line.split()[1] for line in file if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_signal_before_the_first_step(small):
    """In the imports: from the moment that it has a handler."""
    process = start(*small)
    while process.poll() is None and not handles(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 0, err


def test_second_writer_is_refused(small):
    process = Fork(*small, *LONG, "--max_iters=100000")
    wait_for(out_dir(small) / "metrics.jsonl", '"step": 1', process)
    before = out_dir(small) / "config.json"
    stamp = before.stat().st_mtime_ns
    status, _, err = finish(Fork(*small, "--init_from=auto"))
    assert status == 2 and len(err.splitlines()) == 1 and "in use" in err
    assert before.stat().st_mtime_ns == stamp
    process.kill()
    process.communicate()
    assert finish(Fork(*small, "--init_from=auto", "--max_iters=2"))[0] == 0


@pytest.mark.parametrize("early", [True, False])
def test_workers_end_when_their_launcher_is_killed(small, early):
    """While they still load torch, and in the middle of the run."""
    process = start(*small, *LONG, "--max_iters=100000", processes=2)
    while process.poll() is None and len(workers := workers_of(process.pid)) < 2:
        time.sleep(0.02)
    if early:  # with the watch for the launcher, which comes before the handler
        while not all(handles(pid, signal.SIGTERM) for pid in workers):
            time.sleep(0.01)
    else:
        wait_for(out_dir(small) / "metrics.jsonl", '"step": 3', process)
    process.kill()
    process.wait()
    end = time.time() + 60
    while any(state_of(pid)[0] for pid in workers) and time.time() < end:
        time.sleep(0.1)
    assert not any(state_of(pid)[0] for pid in workers)
    assert finish(Fork(*small, "--init_from=auto", "--max_iters=2"))[0] == 0  # and the lock is free


RANK_1 = """
import math, os, runpy, signal, sys
sys.path.insert(0, {root!r})
import torch
from model import Transformer
forward, calls = Transformer.forward, []
def changed(self, tokens, targets=None, cache=None):
    loss = forward(self, tokens, targets, cache)
    if self.training and os.environ["RANK"] == "1":
        calls.append(0)
        {action}
    return loss
Transformer.forward = changed
sys.argv = ["train.py"] + sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_nan_on_one_rank_stops_or_skips_on_all(small, tmp_path, policy):
    """Rank 1 alone has a NaN in step 3: after 1 warm-up pass and 3 steps of 2 micro-steps."""
    script = tmp_path / "nan.py"
    script.write_text(RANK_1.format(root=str(ROOT), action="loss = loss * math.nan if len(calls) == 8 else loss"))
    begin = start if policy == "stop" else Fork  # with the launcher, which reports the statuses
    status, _, err = finish(begin(*small, f"--nan_policy={policy}", script=str(script), processes=2))
    rows = metrics(small)
    assert rows[3]["train/loss"] == "NaN"
    if policy == "skip":
        assert status == 0 and list(rows) == list(range(9)), err
    else:
        assert status == 1 and list(rows) == [0, 1, 2, 3]  # the launcher's own status
        assert err.count("exitcode  : 3") == 2 and err.count("stopped before taking this step") == 1


def test_an_exception_on_one_rank_saves_there(small, tmp_path):
    """Rank 1 alone fails, in step 3, and says so; what it has saved continues exactly."""
    script = tmp_path / "failing.py"
    action = "if len(calls) == 8: raise ValueError('here alone')"
    script.write_text(RANK_1.format(root=str(ROOT), action=action))
    straight = (*small, "--max_iters=4", f"--out_dir={tmp_path / 'straight'}")
    assert finish(Fork(*straight, processes=2))[0] == 0
    process = Fork(*small, script=str(script), processes=2)
    status, _, err = finish(process)
    assert status == 1 and "ValueError in step 3: saved the state before that step" in err, err
    assert (out_dir(small) / "ckpt_00000003.json").exists()
    assert finish(Fork(*small, "--init_from=resume", "--max_iters=4", processes=2))[0] == 0
    assert losses(small) == losses(straight)


@pytest.mark.slow
def test_torchrun_restarts(small, tmp_path):
    """One rank is killed at step 6 of the first attempt: the launcher starts all again and the losses are the same."""
    straight = (*small, *LONG, f"--out_dir={tmp_path / 'straight'}")
    script = tmp_path / "dying.py"
    first = 'os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"'
    action = f"if len(calls) == 30 and {first}: os.kill(os.getpid(), signal.SIGKILL)"
    script.write_text(RANK_1.format(root=str(ROOT), action=action))
    assert finish(Fork(*straight, processes=2))[0] == 0
    words = (*small, *LONG, "--init_from=auto")
    status, out, err = finish(start(*words, script=str(script), processes=2, options=["--max-restarts=1"]))
    assert status == 0 and "resuming from" in out, err
    assert losses(words) == losses(straight)


def test_file_size_limit_instead_of_a_full_disk(small, tmp_path):
    """A real failed write: the system refuses files above 60 kB, so no checkpoint fits, but the metrics do."""
    script = tmp_path / "limited.py"
    script.write_text(
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nsys.argv = ['train.py'] + sys.argv[1:]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    status, _, err = finish(Fork(*small, script=str(script)))
    assert status == 1  # the last checkpoint could not be saved, so this was no success
    assert err.count("the run continues") == 1 and list(metrics(small)) == list(range(8))
    assert not list(out_dir(small).glob("*.tmp")) + list(out_dir(small).glob("ckpt*"))


@pytest.mark.parametrize(
    "word, processes, expected",
    [
        ("--nlayer=3", 1, "did you mean n_layer"),
        ("--batch_size=many", 1, "batch_size: expected"),
        ("config/nothing.py", 1, "config/nothing.py"),
        ("{tmp}/raises.py", 1, "raises.py, line 2: ZeroDivisionError"),
        ("--dataset=kjw", 1, "no data set 'kjw'"),
        ("--init_from=resume", 1, "no checkpoint to resume"),
        ("--gradient_accumulation_steps=3", 2, "multiple of the 2 processes"),
    ],
)
def test_mistakes_are_one_line_and_status_2(small, tmp_path, word, processes, expected):
    (tmp_path / "raises.py").write_text("n_layer = 2\nn_head = 1 / 0\n")
    process = Fork(*small, word.format(tmp=tmp_path), processes=processes)
    _, _, err = finish(process)
    assert [worker.exitcode for worker in process.workers] == [2] * processes, err
    (line,) = err.splitlines()
    assert line.startswith("error: ") and expected in line
    assert not any(out_dir(small).glob("[!.]*"))


def test_compile(small, monkeypatch, capsys):
    """compile=auto goes on in eager mode where compiling fails; compile=True does not hide the failure."""
    fast = {"device": "cpu", "dtype": "float32", "compile": True, "backend": "gloo"}
    monkeypatch.setattr(train, "for_this_machine", lambda config: replace(config, **fast))

    class BrokenInEvaluation(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, *args):
            if not self.training:
                raise RuntimeError("no graph of an evaluation")
            return self.model(*args)

    monkeypatch.setattr(torch, "compile", BrokenInEvaluation)
    assert run(*small) == 0
    assert "no graph of an evaluation" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="no graph of an evaluation"):
        run(*small, "--compile=True")


@pytest.mark.slow
def test_compiled_training(small, tmp_path):
    """As eager training, the live curvature too, which the raw model has; and bit for bit as when compiled before.

    On two threads, which add to the same rows of the embedding's gradient.
    """
    measured = ("--curvature_interval=3", "--sharpness_interval=3")
    small = (*small, "--n_layer=1", "--block_size=64", "--batch_size=16", "--dropout=0", *measured)
    compiled, again = ((*small, "--compile=True", f"--out_dir={tmp_path / name}") for name in ("compiled", "again"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for words in (small, compiled, again):
            assert run(*words) == 0
    finally:
        torch.set_num_threads(threads)
    for step, pair in losses(small).items():
        assert losses(compiled)[step] == pytest.approx(pair, abs=1e-5)
    for key in ("curvature/lambda_max", "sharpness/QK"):
        assert metrics(compiled)[3][key] == pytest.approx(metrics(small)[3][key], rel=1e-2)
    first, second = (torch.load(tmp_path / name / "ckpt_00000008.pt")["model"] for name in ("compiled", "again"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def wandb_rows(path):
    """The history rows of an offline run: a LevelDB log (blocks of 32 kB, records in parts) of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            message, record = Record.FromString(record), b""
            if message.WhichOneof("record_type") == "history":
                row = {"/".join([*item.nested_key] or [item.key]): item.value_json for item in message.history.item}
                yield {key: json.loads(value) for key, value in row.items() if not key.startswith("_")}


def test_wandb_offline_holds_the_same_numbers(small):
    status, _, err = finish(start(*small, "--wandb_log=True"))
    assert status == 0, err
    (path,) = out_dir(small).glob("wandb/offline-run-*/run-*.wandb")
    assert {row["step"]: row for row in wandb_rows(path)} == metrics(small)
    saved = torch.load(out_dir(small) / "ckpt_00000008.pt", weights_only=True)
    assert saved["wandb_id"] and saved["wandb_id"] in path.name


def test_wandb_that_cannot_start_is_a_warning(small):
    env = {"WANDB_MODE": "online", "WANDB_API_KEY": "", "WANDB_SILENT": "true"}
    status, _, err = finish(start(*small, "--wandb_log=True", "--max_iters=2", env=env))
    assert status == 0 and err.count("warning: wandb could not start") == 1
    assert len(metrics(small)) == 3
