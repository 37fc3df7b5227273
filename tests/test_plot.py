"""What the curves say: gap, speedup, and what was not measured."""

import json

import matplotlib.image
import pytest
from conftest import ROOT, finish, start
from helpers import coloured

import plot
from blockwise import UserError
from blockwise.curves import reaches, speedup
from blockwise.figures import budgets, study
from blockwise.figures import draw as draw_folder
from blockwise.figures.curves import Run, draw
from blockwise.figures.style import COLOURS, start_figure, write


def make_run(folder, losses, blockwise, max_iters=None):
    """A run with a validation loss every 100 steps."""
    folder.mkdir()
    rows = [{"step": 100 * i, "tokens": i, "val/loss": loss, "train/loss": loss} for i, loss in enumerate(losses)]
    rows[-1].pop("train/loss")
    max_iters = max_iters or rows[-1]["step"]
    (folder / "config.json").write_text(json.dumps({"blockwise": blockwise, "max_iters": max_iters}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def curves(capsys):
    """plot.py curves in this process: what it prints."""

    def printed(*words):
        plot.main(["curves", *map(str, words)])
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(
    "last, double, gap, speedup",
    [
        # the doubled baseline passes 3.0 half way between steps 300 and 400: 350 / 200
        (3.0, [5, 4.5, 3.8, 3.2, 2.8], "bw: 0.2500 below adamw after 200 steps", "bw: 1.75x as fast"),
        (3.5, [5, 3.5, 3.4, 3.2, 2.8], "bw: 0.2500 above adamw after 200 steps", "bw: 0.50x as fast"),
    ],
)
def test_gap_and_speedup(tmp_path, curves, last, double, gap, speedup):
    bw = make_run(tmp_path / "bw", [5, 4, last], True)
    adamw = make_run(tmp_path / "adamw", [5, 4.2, 3.25], False)
    out = curves(bw, adamw, make_run(tmp_path / "double", double, False), f"--out={tmp_path / 'x' / 'c.png'}")
    assert gap in out and speedup in out
    assert coloured(tmp_path / "x" / "c.png") > 1000


def test_what_is_not_finished_or_has_no_baseline_is_not_judged(tmp_path, curves):
    bw = make_run(tmp_path / "bw", [5, 4, 3.0], True)
    out = curves(bw)
    assert (bw / "curves.png").exists() and "gap not measured" in out and "speedup not measured" in out
    short = make_run(tmp_path / "short", [5, 4, 3.0], True, max_iters=900)
    out = curves(short, f"--baseline={make_run(tmp_path / 'adamw', [5, 4.2, 3.25], False)}")
    assert "stopped at 200 of 900" in out and "gap not measured" in out


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path, curves):
    for folder, blockwise in (("a", True), ("b", False)):
        (tmp_path / folder).mkdir()
        make_run(tmp_path / folder / "run$1", [5, 4, 3.0], blockwise)
    out = curves(tmp_path / "a" / "run$1", f"--baseline={tmp_path / 'b' / 'run$1'}")
    assert "a/run$1:" in out and "b/run$1:" in out


@pytest.mark.parametrize("row", ["3", '{"val/loss": 3.0}', '{"step": "x", "val/loss": 3.0}'])
def test_rows_that_no_run_wrote(tmp_path, row):
    run = make_run(tmp_path / "run", [5, 4, 3], True)
    (run / "metrics.jsonl").write_text(f"{row}\n{row}\n")
    with pytest.raises(UserError, match="a line that is no row of a run"):
        draw([run])


def test_the_legend_of_fifty_runs_is_in_the_figure(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("blockwise.figures.curves.write", lambda figure, out: figures.append(figure))
    draw([make_run(tmp_path / str(i), [5, 4 - i / 100, 3], True) for i in range(50)])
    (figure,) = figures
    figure.savefig(tmp_path / "curves.png")
    ((left, bottom), (right, top)), low = figure.legends[0].get_window_extent().get_points(), figure.axes[0].bbox
    assert 0 <= left < right <= figure.bbox.width and 0 <= bottom < top < low.y0 and low.height > figure.bbox.height / 3


def test_runs_on_other_data(tmp_path, capsys):
    """Another tokenizer is an error, other text a warning; a run that does not say is drawn as ever."""
    folders = [make_run(tmp_path / name, [5, 4, 3.0], name == "a") for name in ("a", "b", "c")]
    known = {"tokenizer": "t", "train": "x", "val": "y"}

    def note(folder, data):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"data": data}))

    note(folders[0], known)
    note(folders[1], known | {"val": "z"})
    draw(folders)
    assert "a and b were evaluated on different text" in capsys.readouterr().err
    note(folders[1], known | {"tokenizer": "u"})
    with pytest.raises(UserError, match="a and b were trained with different tokenizers"):
        draw(folders)


def test_speedup_by_hand():
    """Also where the run ends below the doubled baseline; none over a baseline that diverged."""
    ratio, start_step, end, loss = speedup([(0, 5.0), (100, 3.0), (200, 2.0)], [(0, 5.0), (400, 2.5)])
    assert (ratio, start_step, end, loss) == (pytest.approx(400 / 150), 150, 400, 2.5)
    run = [(0, 5.5), (50, 5.0), (100, 4.5)]
    assert speedup(run, [(0, 5.5), (100, 6.0), (200, 7.0)]) is None
    assert speedup(run, [(0, 4.0), (200, 3.0)]) is None


def test_crossing_is_the_last_not_a_lucky_dip():
    assert reaches([(0, 5.0), (100, 2.9), (200, 3.5), (300, 2.5)], 3.0) == 250
    assert reaches([(0, 5.0), (100, 4.0)], 3.0) is None
    assert reaches([(0, 2.0), (100, 1.0)], 3.0) == 0


def test_mistakes(tmp_path, curves):
    with pytest.raises(UserError, match=r"holds no config\.json and metrics\.jsonl of a run"):
        Run(tmp_path)
    folder = make_run(tmp_path / "bw", [5, 4, "NaN"], True)
    assert Run(folder).val == [(0, 5.0), (100, 4.0)]
    (folder / "metrics.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n')
    with pytest.raises(UserError, match="no validation loss yet"):
        Run(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="broken"):
        Run(folder)
    make_run(tmp_path / "good", [5, 4], True)
    for words in ([tmp_path / "nothing"], [], ["--outt=x", folder], [tmp_path / "good", "--out=x.foo"]):
        with pytest.raises(UserError, match=r"^[^\n]*$"):
            curves(*words)


def test_plotting_needs_no_torch(tmp_path):
    folder = make_run(tmp_path / "bw", [5, 4, 3.0], True)
    script = tmp_path / "check.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport plot\n"
        f"for words in (['curves', {str(folder)!r}], ['lr', '--out={tmp_path / 'lr.png'}']):\n"
        "    plot.main(words)\nassert 'torch' not in sys.modules\n"
    )
    assert finish(start(script=str(script)))[0] == 0


def test_lr_draws_a_line_per_rate(tmp_path, monkeypatch, capsys):
    """Blocks with one multiplier share a line; an output layer tied to the embedding has none; a baseline has one."""
    monkeypatch.chdir(tmp_path)
    kjv, out = str(ROOT / "config/kjv_bytes.py"), f"--out={tmp_path / 'x' / 'lr.png'}"
    plot.main(["lr", kjv, "--lr_mult.VO=3", out])
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [
        "Emb, Head 10x", "QK 8x", "FFN 6x", "VO 3x", "Norm 1x",
    ]  # fmt: skip
    assert coloured(tmp_path / "x" / "lr.png") > 1000
    plot.main(["lr", str(ROOT / "config/gpt2_small.py"), out])
    printed = capsys.readouterr().out
    assert "Head" not in printed and "Emb 10x: up to 0.006" in printed
    plot.main(["lr", kjv, "--blockwise=False", "--learning_rate=1e-3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["all blocks: up to 0.001, 1.25e-05 at step 1200", "wrote kjv_bytes_lr.png"]
    assert (tmp_path / "kjv_bytes_lr.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--max_iters=0",), ("--max_iters=1",), ("--learning_rate=0", "--min_lr=0"), ("--lr_mult.QK=0",),
        ("--min_lr=0", "--schedule=linear"), ("--schedule=wsd", "--wsd_boost=paper", "--wsd_decay=1"),
        ("--warmup_scaled=True", "--warmup_iters=10000"), ("--decay_lr=False",), ("--lr_decay_iters=0",),
    ],
)  # fmt: skip
def test_lr_of_unusual_configs(words, tmp_path):
    plot.main(["lr", *words, f"--out={tmp_path / 'lr.png'}"])
    assert (tmp_path / "lr.png").exists()


def test_lr_mistakes(tmp_path):
    for words in (["--learning_rat=1"], ["nothing.py"], [f"--out={tmp_path / 'lr.foo'}"]):
        with pytest.raises(UserError, match=r"^[^\n]*$"):
            plot.main(["lr", *words])
    status, out, _ = finish(start("lr", "--help", script="plot.py"))
    assert status == 0 and "--learning_rate=" in out


def test_curvature_of_a_run_and_of_checkpoints(tmp_path):
    def draw():
        draw_folder("curvature", tmp_path)
        assert coloured(tmp_path / "curvature.png") > 1000
        return matplotlib.image.imread(tmp_path / "curvature.png").shape[1] / 150  # inches

    with pytest.raises(UserError, match="holds nothing that"):
        draw()
    rows = [{"step": step, "curvature/lr_lambda": 3.0 + step, "curvature/threshold": 38.0} for step in range(4)]
    rows[2]["curvature/lr_lambda"] = "NaN"
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 4}]))
    assert draw() == 8  # one panel
    one = {"lambda_max": 5.0, "converged": True}
    found = {"step": 8, "hessian": one, "preconditioned": {**one, "lr_lambda": 7.0, "threshold": 38.0}}
    (tmp_path / "curvature_00000008.json").write_text(json.dumps(found))
    assert draw() == 11  # two
    (tmp_path / "curvature_00000008.json").write_text("{}")
    with pytest.raises(UserError, match=r"curvature_00000008\.json is broken: KeyError"):
        draw()


def make_budget(folder, steps, losses, others=()):
    """A study of three seeds a step of 1,000 tokens. losses: {arm: mean}; others: further comparisons."""
    folder.mkdir()
    arms = {
        arm: {"role": "baseline" if arm == "adamw" else "arm", "mean": mean, "deviation": 0.01}
        | ({} if arm == "adamw" else {"test": {"gap": mean - losses["adamw"], "low": -1.0, "high": 1.0}})
        for arm, mean in losses.items()
    }
    config = {"baseline": "adamw", "dataset": "d", "max_iters": steps, "gradient_accumulation_steps": 1}
    config |= {"batch_size": 10, "block_size": 100}
    places = {"": arms, **{name: arms for name in others}}
    (folder / "study.json").write_text(json.dumps({"study": config, "places": places}))
    return folder


def test_budgets_read_the_speedup_between_budgets(tmp_path, capsys):
    """At 100 steps the arm has what adamw has half way, in log steps, to 400; at 400 it is half way back."""
    short = make_budget(tmp_path / "a", 100, {"adamw": 5.0, "fast": 4.5, "once": 4.0})
    long = make_budget(tmp_path / "b", 400, {"adamw": 4.0, "fast": 3.5})
    budgets.draw([long, short], tmp_path / "x.png")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    found = {(row[0].strip("| "), row[1]): row[-1].strip("| ") for row in rows}
    assert found["100,000", "fast"] == found["400,000", "fast"] == "2.00x"
    assert found["100,000", "once"] == "4.00x" and found["100,000", "adamw"] == ""


def test_budgets_draw_what_two_budgets_or_the_longest_have(tmp_path, monkeypatch):
    short = make_budget(tmp_path / "a", 100, {"adamw": 5.0, "fast": 4.5, "once": 4.0})
    long = make_budget(tmp_path / "b", 400, {"adamw": 4.0, "fast": 3.5, "late": 3.4})
    figures = []
    monkeypatch.setattr(budgets, "write", lambda figure, path: figures.append(figure))
    budgets.draw([long, short], tmp_path / "x.png")
    assert figures[0].axes[0].get_legend_handles_labels()[1] == ["adamw", "fast", "late"]


def test_curves_of_a_study_say_which_half_of_the_text_their_numbers_are_of():
    """With test_loss the lines are of the first half, the numbers beside them of the second."""
    for name, title in (("study_seeds", "test loss"), ("study_cpu", "loss at")):
        figures = dict(study.figures(ROOT / "docs/studies" / name))
        assert figures["curves.png"].axes[0].get_legend().get_title().get_text().startswith(title)
        assert not figures["learning_rates.png"].axes[0].get_legend().get_title().get_text()


def test_budgets_mistakes(tmp_path):
    one = make_budget(tmp_path / "a", 100, {"adamw": 5.0})
    two = make_budget(tmp_path / "b", 400, {"adamw": 4.0}, others=["wide"])
    few, none = "two studies or more", [one, tmp_path]
    for folders, said in (([one], few), ([one, one], few), ([one, two], "one condition"), (none, "holds no study")):
        with pytest.raises(UserError, match=said):
            budgets.draw(folders, tmp_path / "x.png")


def test_an_empty_figure_is_told_from_one_with_lines(tmp_path):
    figure, (axes,) = start_figure()
    write(figure, tmp_path / "empty.png")
    axes.plot([1, 2], color=COLOURS[0])
    write(figure, tmp_path / "line.png")
    assert coloured(tmp_path / "empty.png") == 0 < 1000 < coloured(tmp_path / "line.png")
