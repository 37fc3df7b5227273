"""Runs that are found again: their identity, results.jsonl, a folder of runs that studies share, a Ray cluster."""

import hashlib
import json
import re
import time
from dataclasses import dataclass, fields

import pytest
from conftest import ROOT
from test_compare import FEW, pretend, study  # noqa: F401 (fixtures)

import compare
from blockwise.settings import TrainConfig
from blockwise.study import identity, results, runner
from blockwise.study.config import StudyConfig
from blockwise.study.plan import Study

# Of the names of each study's runs, with the data set's name in place of its hashes, when the list of keys was closed
NAMES = {
    "study_auto": "e2c136bc2634", "study_baseline": "ec63b95d12ef", "study_blocks": "19606c8fabea",
    "study_budget": "ad1cb738dd8f", "study_budget_20": "1beed631a14a", "study_budget_5": "a3e651eaa6f0",
    "study_cpu": "9c56b582eb8c", "study_cpu_long": "89b7c8e32693", "study_exponents": "0e636ef03b4c",
    "study_mechanism": "71fe516e0b1e", "study_optimizers": "d991e314cd47", "study_ratios": "319669eb3cfb",
    "study_rule": "e5d473474bb8", "study_shapes": "094cd74316a2", "study_stability": "3b6998b58a28",
    "study_tables": "06855e35853a", "study_tables_5": "83f8f72991c1",
}  # fmt: skip
RESULTS = sorted(ROOT.glob("docs/studies/*/results.jsonl"))


def runs_of(path):
    """Every run of a study.json, made again from its label by today's code."""
    found = json.loads(path.read_text())
    keys = {f.name for f in fields(StudyConfig)} - {"lr_mult", "wd_mult"}  # in the file with the rule's entries
    plan = Study(StudyConfig(**{key: value for key, value in found["study"].items() if key in keys}), compare.configure)
    for label in (run["run"] for run in found["runs"]):
        for comparison, arm in plan.settings:
            match = re.fullmatch(
                re.escape(arm) + r" at (\S+?)((?:, \w+ [^ ,]+)*), seed (\d+)" + where(comparison), label
            )
            if match:
                values = [float(text.split()[1]) for text in match[2].split(", ")[1:]]
                run = plan.run_of(comparison, arm, (float(match[1]), *values), int(match[3]))
                assert run.label == label
                yield run
                break
        else:
            raise AssertionError(label)


def where(comparison):
    return re.escape(f" ({comparison})") if comparison else ""


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_the_studies_keeps_its_identity(name, monkeypatch):
    monkeypatch.setattr(identity, "fingerprint", lambda data_dir, dataset: dataset)
    names = sorted(run.folder.name for run in runs_of(ROOT / f"docs/studies/{name}/study.json"))
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:12] == NAMES[name]


def test_every_study_is_among_them_or_has_its_lines():
    with_lines = {path.parent.name for path in RESULTS}
    assert NAMES.keys() == {path.parent.name for path in ROOT.glob("docs/studies/*/study.json")} - with_lines


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_line_of_the_studies_keeps_its_identity(path, monkeypatch):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    monkeypatch.setattr(identity, "fingerprint", lambda data_dir, dataset: lines[0]["data"])
    assert lines and all(identity.run_name(TrainConfig(**line["settings"])) == line["identity"] for line in lines)


def test_lines_of_an_earlier_version_are_those_of_runs_of_today(monkeypatch):
    """The runs of study_seeds were made before the list of keys was closed; the plan asks for the same names."""
    lines = [json.loads(x) for x in (ROOT / "docs/studies/study_seeds/results.jsonl").read_text().splitlines()]
    monkeypatch.setattr(identity, "fingerprint", lambda data_dir, dataset: lines[0]["data"])
    config = compare.configure(StudyConfig, [str(ROOT / "config/study_seeds.py")], "")[0]
    plan = Study(config, compare.configure)
    plan.results = results.ResultsFile(ROOT / "docs/studies/study_seeds/results.jsonl").results
    assert {line["identity"] for line in lines} <= {run.folder.name for run in plan.runs()}


def test_a_key_that_joins_counts_away_from_its_default(monkeypatch):
    @dataclass
    class Later(TrainConfig):
        novelty: float = 0.5
        follower: int | None = None

        def resolved(self):
            config = super().resolved()
            config.follower = self.seed if self.follower is None else self.follower
            return config

    before = identity.run_name(TrainConfig(learning_rate=0.01))
    monkeypatch.setattr(identity, "TrainConfig", Later)
    assert identity.run_name(Later(learning_rate=0.01)) == before
    others = [Later(learning_rate=0.01, **key) for key in ({"novelty": 0.6}, {"follower": 3}, {"seed": 1})]
    assert len({before, *map(identity.run_name, others)}) == 4


def test_where_the_data_lie_does_not_count(data_dir, tmp_path):
    (tmp_path / "data").symlink_to(data_dir)
    here, there = (TrainConfig(dataset="tiny", data_dir=str(path)) for path in (data_dir, tmp_path / "data"))
    assert identity.run_name(here) == identity.run_name(there) != identity.run_name(TrainConfig(dataset="tiny"))


# What train.py logs of its blocks, and says of itself, for the trainer that stands for it
LOGGED = """
rows[1:1] = [{"step": s, "grad_norm/QK": s + 1 / 3, "update_rms/QK": s / 7} for s in range(1, 10)]
about = {"python": "3.x", "torch": "2.x", "commit": "abc", "machine": "a fast one"}
Path(job["out_dir"], "config.json").write_text(json.dumps(about))
"""


def reports(folder):
    """The texts of a study's report and study.json, without its folder's name."""
    return [(folder / name).read_text().replace(str(folder), "OUT") for name in ("report.md", "study.json")]


def moved(words, folder):
    return [f"--out_dir={folder}" if word.startswith("--out_dir=") else word for word in words]


def test_a_study_goes_on_from_its_lines_alone(study, pretend, tmp_path):  # noqa: F811
    calls, out = pretend(extra=LOGGED), tmp_path / "out"
    compare.main(study(FEW))
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(calls()) == 4
    for line in lines:
        assert line["blocks"] == {
            "step": list(range(1, 10)),
            "grad_norm/QK": [float(f"{s + 1 / 3:.5g}") for s in range(1, 10)],
            "update_rms/QK": [float(f"{s / 7:.5g}") for s in range(1, 10)],
        }
        assert (line["versions"], line["machine"]) == ({"python": "3.x", "torch": "2.x", "commit": "abc"}, "a fast one")
        config = TrainConfig(**line["settings"], data_dir=study()[1].split("=")[1])
        assert identity.run_name(config) == line["identity"] and line["curve"][-1][1] == line["loss"]
    new = tmp_path / "new" / "out"
    new.mkdir(parents=True)
    (out / "results.jsonl").rename(new / "results.jsonl")
    compare.main(moved(study(FEW), new))
    assert len(calls()) == 4 and not (new / "runs").exists() and reports(new) == reports(out)
    compare.main(moved(study(FEW + "seeds = [1, 2, 3]"), new))
    assert len(calls()) == 6


def test_two_files_merge_by_appending(study, pretend, tmp_path, capsys):  # noqa: F811
    """The first is torn in the middle of its last line; both have one run in common, and the second has no line end."""
    calls, out, new = pretend(), tmp_path / "out", tmp_path / "new" / "out"
    compare.main(study(FEW))
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    new.mkdir(parents=True)
    (new / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:40] + "".join(lines[1:])[:-1])
    compare.main(moved(study(FEW), new))
    assert len(calls()) == 4 and reports(new) == reports(out) and "line 3 is broken" in capsys.readouterr().err
    compare.main(moved(study(FEW + "seeds = [1, 2, 3]"), new))
    assert len(calls()) == 6 and len(results.ResultsFile(new / "results.jsonl").results) == 6


def test_lines_that_no_study_wrote_are_named_and_left(study, pretend, tmp_path, capsys):  # noqa: F811
    calls, path = pretend(), tmp_path / "out" / "results.jsonl"
    compare.main(study(FEW))
    text = path.read_bytes()
    line = json.loads(text.splitlines()[0])
    wrong = {"status": "odd"}, {"loss": "3"}, {"seconds": "1"}, {"curve": [3]}, {"curve": [[0, "3"]]}
    damaged = [b"\xff\xfe", b"[1]", *(json.dumps(line | entry).encode() for entry in wrong)]
    path.write_bytes(b"\n".join([*damaged, text]))
    capsys.readouterr()
    assert compare.main(study(FEW)) == 0 and len(calls()) == 4
    assert capsys.readouterr().err.count("is broken") == len(damaged)


def test_studies_share_a_folder_of_runs(study, pretend, tmp_path):  # noqa: F811
    calls, shared = pretend(), f"--runs={tmp_path / 'shared'}"
    compare.main(study(FEW, shared))
    compare.main(moved(study(FEW + "seeds = [2, 3]", shared), tmp_path / "second"))
    assert len(set(calls())) == len(calls()) == 4 + 2
    assert len((tmp_path / "second" / "results.jsonl").read_text().splitlines()) == 4


def test_a_run_that_another_study_is_making_is_awaited(study, pretend, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The other one has a run of the second arm; its result comes while we wait."""
    calls, words = pretend(), study(FEW, f"--runs={tmp_path / 'shared'}")
    plan = Study(compare.configure(StudyConfig, words, "")[0], compare.configure)
    run = plan.run_of("relative floor", "ours", (1e-3,), 1)
    theirs, sleep = runner.claim(run), time.sleep

    def wait(seconds):
        if len(calls()) == 2 and not (run.folder / "result.json").exists():
            result = {"status": "finished", "loss": 2.9, "curve": [[0, 5.0], [10, 2.9]], "seconds": 1.0}
            (run.folder / "result.json").write_text(json.dumps(result))
            theirs.release()
        sleep(seconds)

    monkeypatch.setattr(runner.time, "sleep", wait)
    assert compare.main(words) == 0
    assert run.folder.name not in calls() and len(calls()) == 3
    assert "ours at 0.001, seed 1 (relative floor): waiting for another study" in capsys.readouterr().out
