"""Studies from the command line: what runs, what is never run twice, what stops and resumes, what is reported."""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time

import pytest
from conftest import ROOT, finish, start
from helpers import coloured

import compare
from blockwise import UserError
from blockwise.checkpoint import manifests
from blockwise.figures import draw
from blockwise.figures import study as figures
from blockwise.rundir import run_lock
from blockwise.study import identity, runner, session

STUDY = """
dataset = "tiny"
device = "cpu"
n_layer, n_head, n_embd, block_size = 1, 2, 16, 16
batch_size = 2
gradient_accumulation_steps = 1
eval_iters, eval_interval = 2, 2
max_iters = lr_decay_iters = 10
warmup_iters = 1
min_lr = 1e-5
arms = {"adamw": "--blockwise=False", "ours": "--lr_mult.Emb=20"}
learning_rates = {"adamw": [1e-3, 2e-3, 4e-3], "ours": [1e-3, 2e-3, 4e-3]}
floors = {"relative floor": "--min_lr_ratio=0.05"}
seeds = [1, 2]
"""

# Stands for train.py: the loss is a valley over the learning rate, deeper for "ours", a little higher for odd seeds
TRAINER = """
import json, math, os, sys
from pathlib import Path
job = {{}}
exec(open(sys.argv[1]).read(), job)
open({calls!r}, "a").write(os.path.basename(job["out_dir"]) + chr(10))
rate, steps, blockwise = job["learning_rate"], job["max_iters"], job.get("blockwise", True)
best = {best}
last = 3 - 0.2 * blockwise + 0.1 * math.log2(rate / best) ** 2 + 0.01 * (job["seed"] % 2) * (1 + blockwise)
rows = [{{"step": s, "val/loss": 5 + (last - 5) * s / steps}} for s in range(0, steps + 1, 2)]
status = 0
{extra}
Path(job["out_dir"], "metrics.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
sys.exit(status)
"""


@pytest.fixture
def study(data_dir, tmp_path):
    """Words for a study into tmp_path/out; more text may go into its file."""

    def words(more="", *rest):
        (tmp_path / "study.py").write_text(STUDY + more)
        return [str(tmp_path / "study.py"), f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}", *rest]

    return words


class InThisProcess:
    """Stands for LocalEngine: each run is a call of the trainer, which has ended when the study next looks."""

    side_by_side = 2

    def __init__(self, trainer):
        self.trainer, self.done = compile(trainer, "trainer.py", "exec"), []

    def has_room(self):
        return len(self.done) < self.side_by_side

    def start(self, run):
        sys.argv, status = ["trainer.py", f"{run.folder}/job.py"], 0
        with open(run.folder / "log.txt", "w") as log, contextlib.redirect_stderr(log):
            try:
                exec(self.trainer, {})
            except SystemExit as end:
                status = end.code
                if isinstance(status, str):
                    status = print(status, file=log) or 1
        self.done.append((run, status, 0.01))

    def ended(self):
        done, self.done = self.done, []
        return done

    def stop(self):
        pass


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Put a trainer of milliseconds in train.py's place; returns a function that lists the runs it was called for."""

    def install(best=2e-3, extra="", real=False):
        """real: runs are processes, and the figures are drawn."""
        script, calls = tmp_path / "trainer.py", tmp_path / "calls"
        trainer = TRAINER.format(calls=str(calls), best=best, extra=extra)
        if real:
            script.write_text(trainer)
            monkeypatch.setattr(runner, "command", lambda run, n: [sys.executable, str(script), f"{run.folder}/job.py"])
        else:
            monkeypatch.setattr(session, "draw", lambda folder: None)
            monkeypatch.setattr(runner, "engine_of", lambda config: InThisProcess(trainer))
            monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
            monkeypatch.setattr(sys, "argv", sys.argv)
        return lambda: calls.read_text().split() if calls.exists() else []

    return install


def found(tmp_path):
    return json.loads((tmp_path / "out" / "study.json").read_text())


def arms_of(tmp_path):
    return found(tmp_path)["places"]["relative floor"]


def report(tmp_path):
    return (tmp_path / "out" / "report.md").read_text()


def test_a_study_judges_each_arm_at_its_best(study, pretend, tmp_path, capsys):
    calls = pretend(real=True)
    assert compare.main(study()) == 0
    assert len(calls()) == len(set(calls())) == 2 * (3 + 1)  # the grids, and the second seed at each best
    arms = arms_of(tmp_path)
    assert arms["adamw"]["best"] == arms["ours"]["best"] == 2e-3
    assert arms["adamw"]["losses"] == {"1": pytest.approx(3.01), "2": pytest.approx(3.0)}
    assert arms["ours"]["test"]["gap"] == pytest.approx(-0.195)
    assert [point["floor"] for point in arms["adamw"]["sweep"]] == pytest.approx([5e-5, 1e-4, 2e-4])
    text, out = report(tmp_path), capsys.readouterr().out
    assert found(tmp_path)["verdicts"][0] in text and found(tmp_path)["verdicts"][0] in out.splitlines()[-1]
    assert "min left" in out and "not measured" in text
    for name in ("curves.png", "learning_rates.png"):
        assert coloured(tmp_path / "out" / name) > 100 and name in text


TUNED = """
test_loss = True
beta2, weight_decay = 0.95, 0.1
tune = {"beta2": [0.95, 0.99], "warmup_iters": [1, 3]}
arms = {"adamw": "--blockwise=False", "ours": "", "rule": "--lr_rule=fitted"}
learning_rates["rule"], untuned = [5e-4], ["rule"]
"""


def test_every_arm_is_tuned_over_the_same_keys(study, pretend, tmp_path, capsys):
    """The baseline gains from another beta2 at twice the rate, ours from a longer warmup; the rule comes as it is."""
    gain = """
if job["beta2"] == 0.99 and not blockwise: best, last = 4e-3, last - 0.3
if job["warmup_iters"] == 3 and blockwise: last -= 0.1
last += 0.1 * math.log2(rate / best) ** 2 - 0.1 * math.log2(rate / {best}) ** 2
rows = [{"step": s, "val/loss": 5 + (last - 5) * s / steps} for s in range(0, steps + 1, 2)]
rows[-1]["test/loss"] = last + 0.5 + 0.01 * job["seed"]
""".replace("{best}", "2e-3")
    calls = pretend(extra=gain)
    assert compare.main(study(TUNED)) == 0
    assert len(calls()) == len(set(calls()))
    arms = arms_of(tmp_path)
    assert (arms["adamw"]["best"], arms["adamw"]["tuned"]) == (4e-3, {"beta2": 0.99, "warmup_iters": 1})
    assert (arms["ours"]["best"], arms["ours"]["tuned"]) == (2e-3, {"beta2": 0.95, "warmup_iters": 3})
    assert arms["rule"]["best"] == 5e-4 and not arms["rule"]["tuned"] and len(arms["rule"]["search"]) == 1
    assert arms["adamw"]["losses"] == {"1": pytest.approx(3.01 - 0.3 + 0.51), "2": pytest.approx(3.0 - 0.3 + 0.52)}
    assert {run["test"] is None for run in found(tmp_path)["runs"]} == {False}
    text, out = report(tmp_path), capsys.readouterr().out
    assert "of which the result is the second" in text
    assert "| adamw | 0.004, beta2 0.99, warmup_iters 1 (near an end: beta2 0.99, warmup_iters 1) |" in text
    assert "adamw at 0.004, beta2 0.99, warmup_iters 1, seed 2 (relative floor)" in out
    assert "- adamw: 0.001 0.95 1: " in text and "- rule: 0.001" not in text


# Two runs an arm, for what does not need a sweep
FEW = "learning_rates = dict(adamw=[2e-3], ours=[1e-3])\nextensions = 0\n"


def test_nothing_runs_twice(study, pretend, tmp_path):
    """Nor do equal arms; another form of checkpoints computes the same; another seed or setting is another run."""
    calls = pretend()
    equal = "arms['again'] = '--blockwise=False'\nlearning_rates['again'] = [2e-3]\n"
    for more, runs in (
        ("", 4),
        ("checkpoint_format = 'sharded'", 4),
        ("seeds = [1, 2, 3]", 6),
        ("warmup_iters = 2", 10),
    ):
        compare.main(study(FEW + equal + more))
        assert len(calls()) == len(set(calls())) == runs


def test_a_best_at_the_edge_extends_the_grid(study, pretend, tmp_path):
    pretend(best=8e-3)
    compare.main(study())
    assert [p["learning_rate"] for p in arms_of(tmp_path)["ours"]["sweep"]] == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    compare.main(study("extensions = 0"))
    assert "(near an end: learning_rate 0.004)" in report(tmp_path) and "is left as it is" in report(tmp_path)


NAN = "status, rows = 3, [*rows[:1], {'step': 1, 'train/loss': 'NaN', 'grad_norm': 'NaN'}]"


@pytest.mark.parametrize("end", [NAN, "rows[-1]['val/loss'] = 9.0"], ids=["NaN", "above its start"])
def test_a_run_that_diverges_is_a_result(end, study, pretend, tmp_path, capsys):
    calls = pretend(extra=f"if rate > 3e-3: {end}")
    assert compare.main(study()) == 0
    before = calls()
    assert "diverged" in capsys.readouterr().out
    sweep = arms_of(tmp_path)["ours"]["sweep"]
    assert [p["status"] for p in sweep] == ["finished", "finished", "diverged"] and sweep[2]["loss"] is None
    assert "ours at 0.004, seed 1 (relative floor): diverged" in report(tmp_path)
    compare.main(study())
    assert calls() == before


def test_spikes_are_counted(study, pretend, tmp_path):
    """Of every run; a result of before they were counted stays a result."""
    spiky = "rate > 1.5e-3 and row['step'] in (4, 8)"
    calls = pretend(extra=f"for row in rows: row['train/loss'] = 9.0 if {spiky} else 3.0")
    compare.main(study(FEW))
    arms = arms_of(tmp_path)
    assert arms["adamw"]["spikes"] == {"1": 2, "2": 2} and arms["ours"]["spikes"] == {"1": 0, "2": 0}
    assert sorted(run["spikes"] for run in found(tmp_path)["runs"]) == [0, 0, 2, 2]
    text = report(tmp_path)
    assert "| 2, 2 |" in text and "near an end" not in text and "one learning rate only" in text
    for path in (tmp_path / "out" / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({key: result[key] for key in ("status", "loss", "curve", "seconds")}))
    (tmp_path / "out" / "results.jsonl").unlink()
    before = calls()
    compare.main(study(FEW))
    assert calls() == before and "| -, - |" in report(tmp_path)


def test_a_run_that_crashes_does_not_end_the_study_and_is_tried_again(study, pretend, tmp_path, capsys):
    flag = tmp_path / "mended"
    calls = pretend(extra=f"if rate == 1e-3 and not os.path.exists({str(flag)!r}): sys.exit('out of luck')")
    assert compare.main(study()) == 1
    assert "failed, exit status 1: out of luck" in capsys.readouterr().out
    text = report(tmp_path)
    assert "adamw at 0.001, seed 1 (relative floor): failed" in text and "ours against adamw: not complete" in text
    before = calls()
    assert len(before) == 6  # nothing follows from a loss that is not known: no other rates, no other seeds
    flag.touch()
    assert compare.main(study()) == 0
    assert len(calls()) == len(before) + 4 and "None." in report(tmp_path)


@pytest.mark.parametrize("row", ["3", '{"val/loss": 3.0}'])
def test_a_run_whose_rows_are_none_has_failed(row, study, pretend, tmp_path):
    pretend(extra=f"Path(job['out_dir'], 'metrics.jsonl').write_text({row!r} + chr(10)); sys.exit(0)")
    assert compare.main(study(FEW)) == 1 and {run["status"] for run in found(tmp_path)["runs"]} == {"failed"}


def test_twice_the_steps_give_the_speedup(study, pretend, tmp_path):
    calls = pretend()
    compare.main(study("twice = True"))
    arms = arms_of(tmp_path)
    doubled = arms["adamw (2x steps)"]
    assert [p["learning_rate"] for p in doubled["sweep"]] == [1e-3, 2e-3, 4e-3] and doubled["best"] == 2e-3
    assert doubled["curves"]["1"][-1][0] == 20 and len(calls()) == 2 * 4 + 4
    # straight lines from 5: the doubled one never comes down to the other's end, which passes 3.005 at step 9.1 of 10
    assert arms["ours"]["speedup"]["ratio"] == pytest.approx(20 / (10 * (5 - 3.005) / (5 - 2.81)), rel=1e-3)
    assert "not measured" not in report(tmp_path)


def test_conditions_times_floors(study, pretend, tmp_path):
    calls = pretend()
    more = "conditions = {'short': '--block_size=8', 'long': ''}\nfloors = {'a': '', 'b': '--min_lr=0'}\n"
    compare.main(study(FEW + more + "learning_rates['ours'] = [2e-3]"))
    assert list(found(tmp_path)["places"]) == ["short, a", "short, b", "long, a", "long, b"]
    assert len(calls()) == 4 * 4
    assert "lower by more than 0.01 in 4 of 4 comparisons" in found(tmp_path)["verdicts"][0]
    assert "of runs of 160 or 320 tokens" in report(tmp_path)


def test_one_seed_gives_no_verdict(study, pretend, tmp_path):
    pretend()
    compare.main(study("", "--seeds=1"))
    assert found(tmp_path)["verdicts"][0].startswith("One seed ran, so there is no verdict")
    assert "lower than" not in report(tmp_path) and "| -0.19" in report(tmp_path)


def test_a_map_of_many_arms_shows_those_with_a_sweep():
    arm = {"role": "arm", "sweep": [1]}
    arms = {"adamw": {"role": "baseline", "sweep": [1]}, "swept": {"role": "arm", "sweep": [1, 2]}}
    few, many = ({**arms, **{str(n): arm for n in range(count)}} for count in (10, 11))
    assert list(figures.legible(few)) == list(few) and list(figures.legible(many)) == ["adamw", "swept"]


def test_runs_evaluated_at_their_ends_only_are_drawn_as_the_seeds_losses(tmp_path):
    """Two points make a straight line from the initial loss, on which no arm can be told from another."""
    losses, rates = {"1": 3.0, "2": 3.2}, [{"learning_rate": 1e-3 * n, "loss": 3.0} for n in range(1, 14)]
    arm = {"role": "baseline", "sweep": rates, "best": 1e-3, "mean": 3.1, "losses": losses}
    for evaluations, lines in (([(0, 7.0), (9, 3.0)], "None"), ([(0, 7.0), (5, 4.0), (9, 3.0)], "--")):
        places = {"": {"adamw": arm | {"curves": {seed: evaluations for seed in losses}}}}
        (tmp_path / "study.json").write_text(json.dumps({"places": places, "study": {"test_loss": True}}))
        (_, sweeps), (_, bands) = figures.figures(tmp_path)
        line = bands.axes[0].lines[0]
        assert line.get_linestyle() == lines and (list(line.get_ydata()) == [3.0, 3.2]) == (lines == "None")
        assert ("first half" in bands.axes[0].get_legend().get_title().get_text()) == (lines == "--")
        assert len(sweeps.axes[0].get_xticks()) < len(rates)  # their numbers would lie over each other


def test_a_study_outlives_the_reader_of_its_output(study, pretend, tmp_path, monkeypatch):
    pretend()
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert compare.main(study(FEW)) == 0
    assert (tmp_path / "out" / "report.md").is_file()


def test_plan_needs_no_data_and_writes_nothing(study, tmp_path, capsys):
    """Floors are the same for all arms, whatever an arm's file says: wsd.py sets one of its own."""
    assert compare.main([*study("conditions = {'there is no such data': '--dataset=nowhere'}"), "--plan"]) == 0
    out = capsys.readouterr().out
    assert "0.001 (to 5e-05), 0.002 (to 0.0001)" in out and "a run: 320 tokens" in out
    assert "at least 2,560 tokens in all" in out
    words = study("floors = {}\nlearning_rates['wsd'] = [1e-3, 2e-3]", f"--arms.wsd={ROOT}/config/arms/wsd.py")
    assert compare.main([*words, "--plan"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "0.001 (" in line]
    assert [line.split("0.001 (")[1].split(")")[0] for line in lines] == ["to 1e-05"] * 3 + ["to 5e-05"] * 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text,expected",
    [
        ("--arms.ours=--optimizer=adamv", "optimizer: expected .* did you mean adamw"),
        ("--arms.ours=--lr_mul=3", "arm 'ours': unknown key 'lr_mul'"),
        ("--arms.ours=config/nowhere.py", "config/nowhere.py does not exist"),
        ("--arms.ours=--learning_rate=1", "arm 'ours': --learning_rate=1: set by the study itself"),
        ("--arms.ours=--help", "arm 'ours': --help: expected files and --key=value"),
        ("--arms.ours=--max_iters=8", "arms differ in max_iters: .*'adamw': 10, 'ours': 8"),
        ("--arms.ours=--batch_size=4", "arms differ in tokens a step"),
        ("--arms.ours=--dataset=kjv", "arms differ in dataset"),
        ("--arms.ours=--eval_iters=3", "arms differ in sequences of an evaluation"),
        ("--arms.ours=--n_head=3", "n_embd=16: expected a multiple of n_head=3"),
        ("--arms.ours=--dataset='tiny", "arm 'ours': .*No closing quotation"),
        ("--arms.a|b=", "the name 'a|b'"),
        ("arms = {1: ''}", "unknown entry 1 of .*arms"),
        ("arms = 3", "arms: expected a dict of str"),
        ("init_from = 'hf:somewhere'", "init_from=hf:somewhere: expected scratch"),
        ("twice, eval_interval = True, 3", "eval_interval=3: expected 1 to 2"),
        ("twice = True\ntune = {'warmup_iters': [1, 2]}", "twice=True: expected False with tune or looks"),
        ("--eval_only=True", "eval_only"),
        ("floors = {'x': '--min_lr_ratio=2'}", "min_lr_ratio=2.0: expected in"),
        ("--device=cuda:77", "device=cuda:77"),
        ("--baseline=adam", "baseline=adam: no such arm; expected one of adamw, ours"),
        ("--learning_rates.our=1e-3", "unknown arm 'our'"),
        ("learning_rates = dict(ours=[])", "expected at least one rate above 0"),
        ("learning_rates = dict(ours=[0.0])", "expected at least one rate above 0"),
        ("--learning_rate=1e-3", "set by the study itself"),
        ("--seeds=1,1", "seeds"),
        ("--seeds=[]", "seeds"),
        ("--seeds=a", "seeds: expected a list of int, got a"),
        ("--jobs=0", "jobs=0"),
        ("--processes=2", "gradient_accumulation_steps=1: expected a multiple of processes=2"),
        ("--max_iters=0", "max_iters=0"),
        ("--conditions.x=--dataset=tinny", "no data set 'tinny'"),
        ('tune = {"beta2": [0.9]}', r"tune.beta2=\[0.9\]: expected .*, at least two values"),
        ('tune = {"optimizer": [1, 2]}', "tune has 'optimizer': expected a key of train.py that is a number, or lr"),
        ('tune = {"beta2": [0.9, 0.99]}', "arm 'adamw': beta2 is not set"),
        ('tune = {"max_iters": [10, 20]}', "tune has 'max_iters': expected a key in which"),
        ('tune = {"warmup_iters": [1.5, 2]}', r"tune.warmup_iters=\[1.5, 2.0\]: expected integers"),
        ('untuned = ["ours"]', "untuned=.*: expected arms with one learning rate"),
    ],
)
def test_mistakes(study, text, expected):
    """On the command line or in the study's file."""
    with pytest.raises(UserError, match=expected):
        compare.main(study("", text) if text.startswith("--") else study(text))


@pytest.mark.parametrize(
    "words, expected",
    [([str(ROOT / "config/demo.py"), "--plan"], "names no arms"), (["--report"], "--report: expected folders")],
)
def test_a_study_that_is_none(words, expected):
    with pytest.raises(UserError, match=expected):
        compare.main(words)


def test_a_damaged_result_is_made_again(study, pretend, tmp_path, capsys):
    calls = pretend()
    compare.main(study(FEW))
    before = calls()
    first, second = sorted((tmp_path / "out" / "runs").glob("*/result.json"))[:2]
    first.write_text('{"sta')
    second.write_text('{"status": "finished", "loss": null, "curve": [], "seconds": 1}')
    (tmp_path / "out" / "results.jsonl").unlink()
    assert compare.main(study(FEW)) == 0
    assert len(calls()) == len(before) + 2 and "is broken" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_ends_the_study(study, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").touch()
    with pytest.raises((UserError, OSError), match="runs"):
        compare.main(study())


def test_the_data_are_known_by_their_content(tmp_path, data_dir):
    identity.fingerprint.cache_clear()
    known = identity.fingerprint(str(data_dir), "tiny")
    assert json.loads((data_dir / "tiny" / "meta.json").read_text())["splits"]["val"]["sha256"] == known["val"]
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "meta.json").unlink()
    assert identity.fingerprint(str(tmp_path), "tiny") == known and identity.fingerprint(str(tmp_path), "none") is None


def test_one_study_at_a_time(study, pretend, tmp_path):
    pretend()
    with run_lock(tmp_path / "out"), pytest.raises(UserError, match="in use by another run"):
        compare.main(study())


@pytest.mark.parametrize("text", ['{"places": {}}', '{"places": []}', '{"places": {"x": {"a": {}}}}', "[]", "{"])
def test_figures_of_a_broken_study(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=r"study\.json is broken"):
        draw("study", tmp_path)


def wait_until(holds):
    deadline = time.monotonic() + 300  # a busy machine takes minutes to start torchrun
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds()


ENDLESS = "max_iters = lr_decay_iters = 100000\neval_interval = 0\nlog_interval = 100\n"


@pytest.mark.slow
def test_killed_and_started_again(study, tmp_path):
    """With train.py itself: what was finished stays, what was interrupted resumes from its checkpoint."""
    words = study("max_iters = lr_decay_iters = 30\nlearning_rates = dict(adamw=[2e-3], ours=[2e-3])\nextensions = 0")
    process, results = start(*words, script="compare.py"), tmp_path / "out" / "runs"
    wait_until(lambda: list(results.glob("*/result.json")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in results.glob("*/result.json")}
    assert len(done) < 4
    status, out, err = finish(start(*words, script="compare.py"))
    assert (status, err) == (0, "") and "ours against adamw: " in out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    folders = list(results.iterdir())
    assert len(folders) == 4 and not any(manifests(folder) for folder in folders)  # the weights are gone
    rows = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(31)) and math.isfinite(rows[-1]["val/loss"])


@pytest.mark.slow
def test_a_signal_saves_the_runs_and_ends(study, tmp_path):
    process, runs = start(*study(ENDLESS), script="compare.py"), tmp_path / "out" / "runs"
    wait_until(lambda: len(list(runs.glob("*/metrics.jsonl"))) == 2)
    process.terminate()
    status, out, err = finish(process)
    assert (status, err) == (0, "") and "the same command resumes it" in out
    assert len([folder for folder in runs.iterdir() if manifests(folder)]) == 2


@pytest.mark.slow
def test_runs_under_torchrun_end_with_a_study_that_is_killed(study, tmp_path):
    words = study(ENDLESS + "gradient_accumulation_steps = 2", "--processes=2", "--jobs=1")
    process, runs = start(*words, script="compare.py"), tmp_path / "out" / "runs"
    wait_until(lambda: list(runs.glob("*/metrics.jsonl")))
    process.kill()
    process.communicate()
    (folder,) = runs.iterdir()
    wait_until(lambda: not runner.is_locked(folder))
