"""The acceptance of a GPU machine: what a check is, what a wrong command gets, and every phase in its tiny form."""

import importlib
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))

import gpu_accept
import sides
from accept import correct, fit, speed
from accept.report import REPORTED, Report, Skip, at_least, at_most, between, equal
from accept.runs import Batch, Job, Place, Run

from blockwise import UserError


def fails(error):
    raise error


def test_a_check_is_a_line(capsys):
    """One that is skipped counts neither way."""
    report = Report()
    report.check("a/loss", at_most(1e-4), lambda: 5e-5)
    report.check("a/memory", between(0.9, 1.15), lambda: 1.0)
    report.check("a/status", equal(2), lambda: 2)
    report.check("a/card", equal(1), lambda: fails(Skip("needs a GPU")))
    report.check("a/peer", equal(1), None, "no peer")
    assert report.status == 0
    report.check("a/norm", at_most(1e-3), lambda: math.nan)
    report.check("a/speed", at_least(0.97), lambda: 0.96)
    report.check("a/time", REPORTED, lambda: math.inf)
    report.check("a/run", equal(0), lambda: fails(RuntimeError("it ended\nbadly")))
    assert capsys.readouterr().out.splitlines() == [
        "a/loss 5e-05 <=0.0001 PASS",
        "a/memory 1 0.9..1.15 PASS",
        "a/status 2 ==2 PASS",
        "a/card - ==1 SKIP (needs a GPU)",
        "a/peer - ==1 SKIP (no peer)",
        "a/norm nan <=0.001 FAIL",
        "a/speed 0.96 >=0.97 FAIL",
        "a/time inf finite FAIL",
        "a/run - ==0 FAIL (RuntimeError: it ended)",
    ]
    assert [report.count(verdict) for verdict in ("PASS", "FAIL", "SKIP")] == [3, 4, 2] and report.status == 1


def test_a_section_that_fails_is_a_failure_and_the_next_one_runs(tmp_path):
    """And no check at all is no acceptance. The JSON has what was printed, with NaN as a string."""
    report = Report()
    assert report.status == 1
    report.section("one", lambda report: fails(KeyError("missing")))
    report.section("two", lambda report: report.check("two/a", at_most(1), lambda: math.nan))
    report.write(tmp_path / "out.json", {"device": "a card"}, {"fit": 3.0})
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda text: fails(ValueError(text)))
    assert found["machine"] == {"device": "a card"} and found["seconds"] == {"fit": 3.0} and found["status"] == 1
    assert found["checks"] == [
        {"name": "one", "value": None, "bound": "ends", "verdict": "FAIL", "reason": "KeyError: 'missing'"},
        {"name": "two/a", "value": "nan", "bound": "<=1", "verdict": "FAIL", "reason": ""},
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (["everything", "--device=cpu", "--tiny"], "invalid choice: 'everything'"),
        ([], "phase"),
        (["fit", "--device=cpu"], "expected a CUDA device, or --tiny as well"),
        (["fit", "--device=cuda:9999", "--tiny"], "device=cuda:9999"),
        (["fit", "--device=gpu"], "expected cpu, cuda, cuda:N or mps"),
        (["fit", "--device=cpu", "--tiny", "--data_dir=no/such"], "no such folder"),
        (["fit", "--device=cpu", "--tiny", "--out=no/such/file.json"], "its folder does not exist"),
    ],
)
def test_a_wrong_command_is_the_users_mistake(words, said):
    with pytest.raises(UserError, match=said) as caught:
        gpu_accept.main(words)
    assert "\n" not in str(caught.value)


def test_a_failure_is_exit_status_1(monkeypatch, capsys, tmp_path):
    def checks(report, place):
        report.check("fit/a", equal(1), lambda: 2)

    monkeypatch.setattr(fit, "checks", checks)
    assert gpu_accept.main(["fit", "--device=cpu", "--tiny", f"--out={tmp_path / 'out.json'}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("machine: device ") and lines[1] == "fit/a 2 ==1 FAIL"
    assert lines[2].startswith("0 passed, 1 failed, 0 skipped; fit ")
    assert json.loads((tmp_path / "out.json").read_text())["status"] == 1


def made_up_run(folder, losses, status=0, stderr=""):
    """A Run that has ended, with these training losses by step."""
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"status": status}))
    (folder / "stderr").write_text(stderr)
    rows = [json.dumps({"step": step, "train/loss": loss}) for step, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(row + "\n" for row in rows))
    return Run(folder.name, folder, folder)


def test_the_gap_between_two_runs(tmp_path):
    one = made_up_run(tmp_path / "one", [5.0, 4.0, 3.0])
    assert correct.gap(one, made_up_run(tmp_path / "two", [5.0, 4.5, 3.25]), ["train/loss"]) == 0.5
    assert correct.gap(one, made_up_run(tmp_path / "nan", [5.0, "NaN", 3.0]), ["train/loss"]) == math.inf
    with pytest.raises(RuntimeError, match="logged in steps"):
        correct.gap(one, made_up_run(tmp_path / "short", [5.0, 4.0]), ["train/loss"])
    with pytest.raises(RuntimeError, match="logged in steps"):
        correct.gap(one, one, ["val/loss"])


def test_a_run_that_failed_says_so(tmp_path):
    failed = made_up_run(tmp_path / "failed", [], 2, "some warning\nerror: batch_size=0: expected at least 1\n")
    with pytest.raises(RuntimeError, match="failed ended with status 2: error: batch_size=0"):
        _ = failed.rows
    assert failed.error == "error: batch_size=0: expected at least 1"
    loud = made_up_run(tmp_path / "loud", [], 1, "Traceback (most recent call last):\nValueError: x\n")
    with pytest.raises(RuntimeError, match="instead of one"):
        _ = loud.error
    with pytest.raises(RuntimeError, match="ended in a traceback: ValueError: x"):
        loud.lines("x")
    assert (failed.lines("warning"), failed.errors) == (1, 1)
    with pytest.raises(RuntimeError, match="has no result: it was not reached"):
        _ = Run("lost", tmp_path / "lost", tmp_path / "lost").rows


def test_the_numbers_of_a_dry_run(tmp_path):
    run = made_up_run(tmp_path / "dry", [])
    (run.folder / "stdout").write_text("memory of a process, estimated: 12,416 MB\nestimated largest batch_size: 56\n")
    assert fit.number_in(run, "memory of a process, estimated:") == 12416
    assert fit.number_in(run, "largest batch_size:") == 56


MADE_UP = """
import time
from blockwise import UserError
def serve(pipe, name, *_):
    if name == "fails":
        pipe.send(UserError("out of memory"))
    if name == "hangs":
        time.sleep(99)
    if name == "works":
        pipe.send({"flops": 1})
        while pipe.recv():
            pipe.send(2.5)
        pipe.send(7)
"""


def test_sides_that_end_or_hang(tmp_path, monkeypatch):
    """Where one side ends early, out of memory for example, the other is measured; one that hangs is not waited for."""
    (tmp_path / "made_up.py").write_text(MADE_UP)  # a file of its own: this one would load torch in every process
    monkeypatch.syspath_prepend(tmp_path)
    serve = importlib.import_module("made_up").serve
    monkeypatch.setattr(speed, "Side", partial(sides.Side, target=serve))
    place = Place("cpu", True, None, tmp_path)
    for other in ("ends", "fails"):
        assert speed.take_turns(place, "gpt2", 12, ["works", other]) == ([[2.5, 2.5], []], [7, 0])
    monkeypatch.setattr(Place, "time_left", lambda place, limit: 0.1)
    assert speed.take_turns(place, "gpt2", 12, ["hangs"]) == ([[]], [0])


def test_checkpoints_that_nobody_comes_back_to_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("accept.runs.start", lambda *args, **more: subprocess.Popen(["true"]))
    place = Place("cpu", True, None, tmp_path)
    batch = Batch(place, "a", {"alone": Job(()), "shared": Job((), out="text")})
    for run in batch.runs.values():
        (run.out_dir / "ckpt_00000001_sharded").mkdir(parents=True)
        (run.out_dir / "ckpt_00000002.pt").touch()
    batch.wait()
    left = {name: len(list(run.out_dir.iterdir())) for name, run in batch.runs.items()}
    assert left == {"alone": 0, "shared": 2}


def test_the_time_of_a_phase_is_over(monkeypatch):
    place = Place("cuda", False, None, Path("."))
    assert place.time_left(200) == 200
    monkeypatch.setattr("accept.runs.time.monotonic", lambda: place.began + 500)
    assert 39 < place.time_left(200) < 41


@pytest.mark.slow
def test_every_phase_in_its_tiny_form(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "bench/gpu_accept.py", "all", "--device=cpu", "--tiny", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(out.read_text())["checks"]
    passed = {check["name"].split("/")[0] for check in checks if check["verdict"] == "PASS"}
    assert passed == set(gpu_accept.PHASES)
    unable = [check["name"] for check in checks if check["verdict"] == "SKIP"]
    assert len(checks) > 100 and len(unable) < len(checks) / 5, unable
