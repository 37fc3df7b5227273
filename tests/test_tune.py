"""tune.py: what it plans for a model, a text and the time; what it makes of the answer. Its runs are made up."""

import json
import math
import shutil

import pytest
from test_search import fill

import tune
from blockwise import NotFinite, UserError
from blockwise.settings import TrainConfig
from blockwise.study import report
from blockwise.study.config import StudyConfig
from configurator import configure

MINE = """
dataset, device, model_type = "tiny", "cpu", "llama"
n_layer, n_head, n_embd, n_inner, block_size = 1, 4, 64, 128, 16
batch_size, gradient_accumulation_steps = 8, 2
max_iters, learning_rate, min_lr, blockwise = 400, 2e-3, 2e-4, False
"""


@pytest.fixture
def tuned(tmp_path, data_dir, monkeypatch):
    """Call tune.py in tmp_path; its runs end at loss(run) and take 2 s and 0.1 s a step. Returns study and rates."""

    def call(loss, *words):
        monkeypatch.setattr(tune, "measured", lambda *args: (2.0, 0.1, 2))
        monkeypatch.setattr(tune, "run_study", lambda study: fill(study, loss) and report.write(study))
        (tmp_path / "mine.py").write_text(MINE)
        words = [str(tmp_path / "mine.py"), f"--data_dir={data_dir}", f"--out_dir={tmp_path}", "--hours=0.25", *words]
        assert tune.main(words) == 0
        study = read(tmp_path / "study.py")
        if "--plan" in words:
            return study, None
        rates, given, _ = configure(TrainConfig, [str(tmp_path / "mine.py"), str(tmp_path / "rates.py")], "")
        answer = json.loads((tmp_path / "rates.json").read_text())
        assert {key: getattr(rates, key) for key in answer["rates"]} == answer["rates"] and given >= set(
            answer["rates"]
        )
        return study, (answer["answer"], rates)

    return call


def read(file):
    return configure(StudyConfig, [str(file)], "")[0]


def valley(run, gain):
    """Lowest at a rate of 4e-3; with rates per block, tables at four times the rest gain so many nats."""
    tables = run.config.resolved().lr_mult["Emb"]
    lead = gain - 0.01 * math.log2(tables / 4) ** 2 if run.arm == tune.BLOCKWISE else 0
    slow = 0.02 * math.log2(run.rate / 4e-3) ** 2 + 0.1 * (run.config.warmup_iters / run.config.max_iters - 0.3) ** 2
    return 3 + slow - lead + 0.3 * (run.budget < 1) + 1e-3 * (run.seed * (2 if run.arm == tune.ONE else 3) % 7)


def test_rates_per_block_where_they_gain(tuned):
    study, (answer, rates) = tuned(lambda run: valley(run, 0.2))
    assert answer.startswith("rates per block: lower by more than 0.01, -0.") and "x in steps (" in answer
    assert rates.blockwise and rates.lr_mult["Emb"] > 2 and rates.lr_mult["Norm"] == 1.0
    assert 1e-3 < rates.learning_rate < 1.6e-2 and 0 < rates.warmup_iters < 0.7 * 400 == 0.7 * rates.max_iters
    assert study.rungs[0][0] == 0.25 and study.search_seed not in study.seeds
    assert study.learning_rates == {tune.ONE: [2e-3], tune.BLOCKWISE: [2e-3]}
    assert rates.min_lr_ratio == pytest.approx(0.1)


def test_one_rate_where_they_do_not(tuned):
    _, (answer, rates) = tuned(lambda run: 3.0 + 1e-3 * (run.seed * (2 if run.arm == tune.ONE else 3) % 7))
    assert answer.startswith(f"within the margin: use one rate of {rates.learning_rate:g};")
    assert not rates.blockwise and set(rates.resolved().lr_mult.values()) == {1.0}


def test_undecided_is_not_a_recommendation(tuned):
    _, (answer, rates) = tuned(lambda run: 3.0 + 0.01 * (run.seed * (7 if run.arm == tune.ONE else 5) % 11) ** 2)
    assert answer.startswith("rates per block: undecided: use one rate of") and not rates.blockwise


def test_the_plan_fits_into_the_hours(tuned, tmp_path, capsys):
    points = []
    for hours in (20, 1, 0.5, 0.2):
        study, _ = tuned(None, f"--hours={hours}", "--plan")
        (tmp_path / "study.py").unlink()
        runs = [
            (share, n * p)
            for (share, n, _), p in zip(study.rungs, (study.points, *(r[2] for r in study.rungs)), strict=False)
        ]
        seconds = sum(count * (2 + 0.1 * 400 * share) for share, count in [*runs, (1, len(study.seeds))])
        assert 0.4 * hours < 2 * seconds / 2 / 3600 <= hours or study.points == 64
        points.append(study.points)
    assert points == sorted(points, reverse=True) and points[0] == 64 and points[-1] == 16
    assert "in all at most" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"hours=0.01: expected at least .* on this machine, or a smaller --budget"):
        tuned(None, "--hours=0.01", "--plan")


def test_a_budget_and_a_proxy(tuned, capsys):
    """5 tokens per parameter of each model; as many steps as the model itself has, hence fewer tokens a step."""
    study, _ = tuned(None, "--hours=9", "--budget=5", "--proxy.n_embd=32", "--proxy.n_head=2", "--plan")
    (full, _), (small, _) = (tune.sizes(c) for c in (configure(TrainConfig, [], "", start=study)[0],) * 2)
    assert full == small  # of the proxy itself
    assert study.tokens_per_step * study.max_iters == pytest.approx(5 * small, rel=0.02)
    model = capsys.readouterr().out.splitlines()[0].replace(",", "").split()
    parameters, steps, tokens = int(model[2]), int(model[4]), int(model[7])
    assert parameters > 2 * small and steps == round(5 * parameters / tokens) and tokens == 16 * 16
    assert study.max_iters == pytest.approx(steps, rel=0.2) and study.tokens_per_step < tokens / 2


def test_muon_and_tied_tables(tuned):
    study, _ = tuned(None, "--optimizer=muon", "--tie_weights=True", "--plan")
    assert study.optimizer == "muon" and "lr_mult.Emb" in study.space and "Head" not in "".join(study.space)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--budget=1e-9"], "budget=1e-09: expected more than the 0 steps"), (["--budget=0"], "budget=0.0: expected"),
        (["--max_iters=1"], "max_iters=1: expected more than the 1 steps"), (["--max_iters=0"], "max_iters=0"),
        (["--learning_rate=0"], "learning_rate=0.0: expected above 0"),
        (["--proxy.max_iters=5"], r"proxy=.*: expected keys of a model: .* n_embd"),
        (["--proxy.n_embed=5"], r"unknown key 'n_embed'.*n_embd"),
    ],
)  # fmt: skip
def test_lengths_and_proxies_that_are_none(tuned, tmp_path, words, expected):
    with pytest.raises(UserError, match=expected):
        tuned(None, *words, "--plan")
    assert not (tmp_path / "study.py").exists()


def test_a_model_that_diverges_at_every_rate(tuned, tmp_path):
    with pytest.raises(NotFinite, match="without diverging: expected a lower learning_rate"):
        tuned(lambda run: math.inf)
    assert "no verdict" in (tmp_path / "report.md").read_text() and not (tmp_path / "rates.py").exists()


def test_measured_multipliers_are_no_starting_point(tuned):
    study, (_, rates) = tuned(lambda run: valley(run, 0.2), "--lr_mult=auto", "--blockwise=True")
    assert study.lr_mult == "auto" and rates.lr_mult["Norm"] == 1.0


def test_it_goes_on_and_does_not_mix_plans(tuned, tmp_path):
    tuned(None, "--plan")
    before = (tmp_path / "study.py").read_text()
    tuned(lambda run: valley(run, 0.2))
    assert (tmp_path / "study.py").read_text() == before  # a plan that was made is what runs
    for damaged in (before.encode(), b"", b"\xff\xfe"):
        (tmp_path / "study.py").write_bytes(damaged)
        with pytest.raises(UserError, match=r"was made by other arguments: expected another --out_dir"):
            tuned(None, "--hours=3")


def test_a_machine_is_measured_anew_by_each_call(tmp_path, monkeypatch):
    """A run that is resumed has no time of its own. 30 steps of 0.5 s in 20 s: 5 s besides."""
    runs = tmp_path / "speed" / "runs" / "only"
    runs.mkdir(parents=True)  # of a call that was ended

    def run_study(study):
        runs.mkdir(parents=True)  # which fails where it is there
        rows = [
            {"step": step, "tokens_per_s": 16.0 if step == 20 else 48.0 if step == 21 else 24.0} for step in range(30)
        ]
        (runs / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"runs": [{"seconds": 20.0, "status": "finished"}]}

    monkeypatch.setattr(tune, "run_study", run_study)
    settings = TrainConfig(batch_size=1, block_size=12, gradient_accumulation_steps=1, device="cpu")
    assert tune.measured(tune.TuneConfig(jobs=1), settings, tmp_path / "speed") == (5.0, 0.5, 1)


def test_what_cannot_run_is_refused_before_anything_is_measured(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    broken = tmp_path / "tiny"
    shutil.copytree(data_dir / "tiny", broken)
    ids = bytearray((broken / "train.bin").read_bytes())
    ids[500] ^= 1
    (broken / "train.bin").write_bytes(ids)
    (tmp_path / "mine.py").write_text(MINE)
    words = [str(tmp_path / "mine.py"), f"--out_dir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="device=cuda: no CUDA device here"):
        tune.main([*words, f"--data_dir={data_dir}", "--device=cuda"])
    with pytest.raises(UserError, match=r"train\.bin"):
        tune.main([*words, f"--data_dir={tmp_path}"])
    assert not (tmp_path / "out").exists()


def test_help_begins_with_its_own_keys(capsys):
    with pytest.raises(SystemExit):
        tune.main(["--help"])
    own, of_train = capsys.readouterr().out.split("The keys of train.py:\n")
    assert all(f"  --{word}" in own for word in ("budget=", "hours=", "proxy=", "margin=", "jobs=", "plan\n"))
    assert "--n_layer=12" in of_train and "--n_layer" not in own and "--budget" not in of_train
