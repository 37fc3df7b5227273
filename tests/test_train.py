"""The training loop in this process: what it computes, logs, saves and refuses."""

import gc
import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import ROOT, contents, ids_of, losses, metrics, out_dir, run
from helpers import Stop

import train
from blockwise import UserError, logger
from blockwise.blocks import LR_MULT
from blockwise.checkpoint import manifests
from blockwise.data.writing import write_dataset
from blockwise.files import FolderLock
from blockwise.loader import Dataset, micro_seed, train_batch
from blockwise.schedules import block_rate
from blockwise.settings import TrainConfig
from blockwise.tokenizer import BYTES
from blockwise.training import BlockStats, Throughput, summary
from configurator import configure
from model import ModelConfig, Transformer

LLAMA = ("--model_type=llama", "--n_kv_head=1", "--n_head=2")


@pytest.fixture
def plain(finished_run):
    """Words of the finished run of `small`, to be read only."""
    return [f"--out_dir={finished_run}"]


def test_baseline_is_plain_adamw(small):
    words = (*small, "--blockwise=False", "--decay_lr=False", "--weight_decay=0.3")
    assert run(*words) == 0
    config = json.loads((out_dir(words) / "config.json").read_text())
    model = Transformer(ModelConfig.of(config))
    torch.manual_seed(1337)
    model = Transformer(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.3, fused=True)
    data = Dataset.open(config["data_dir"], "tiny", 16)
    for step in range(8):
        total = 0.0
        for micro in range(4):
            x, y = train_batch(data.train, 1337, step, micro, 2, 16)
            torch.manual_seed(micro_seed(1337, step, micro))
            loss = model(x, y) / 4
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        row = metrics(words)[step]
        assert (row["train/loss"], row["grad_norm"]) == (total.item(), norm.item())


def test_a_step_waits_for_nothing_but_its_row(small, monkeypatch):
    """No look for garbage in its middle; the clock stops after the row, which waits for the update on a GPU.

    And an evaluation reads all of its losses from the device at once.
    """
    order, waits, evaluate = [], [], train.evaluate

    def counted(*args, **keys):
        before = order.count("wait")
        found = evaluate(*args, **keys)
        waits.append(order.count("wait") - before)
        return found

    def noted(where, name, note):
        function = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *args, **keys: (order.append(note()), function(*args, **keys))[1])

    noted(BlockStats, "row", lambda: "row")
    noted(Throughput, "stop", lambda: "clock")
    noted(train, "train_step", lambda: "step" if gc.get_freeze_count() and not gc.isenabled() else "garbage")
    noted(torch.Tensor, "item", lambda: "wait")
    monkeypatch.setattr(train, "evaluate", counted)
    assert run(*small, "--max_iters=2", "--optimizer=sgd") == 0
    assert gc.isenabled() and not gc.get_freeze_count()
    assert [note for note in order if note != "wait"] == ["step", "row", "clock"] * 2 and waits == [0, 0]


@pytest.mark.parametrize("model", [(), LLAMA])
def test_rows(small, model):
    words = (*small, *model)
    run(*words)
    rows, config = metrics(words), configure(TrainConfig, words, "")[0].resolved()
    assert list(rows) == list(range(9))
    blocks = ["Emb", "QK", "VO", "FFN", "Norm"] + (["Head"] if model else [])
    for step, row in rows.items():
        assert ("val/loss" in row) == (step % 4 == 0)
        assert ("train/loss" in row) == (step < 8)
        assert row["tokens"] == step * 4 * 2 * 16
        if step < 8:
            for block in blocks:
                assert row[f"lr/{block}"] == block_rate(config, step, LR_MULT[block])
                assert row[f"grad_norm/{block}"] > 0 and row[f"update_rms/{block}"] > 0
            squares = sum(row[f"grad_norm/{block}"] ** 2 for block in blocks)
            assert row["grad_norm"] == pytest.approx(math.sqrt(squares), rel=1e-5)
            per_block = {f"{name}/{block}" for name in ("lr", "grad_norm", "update_rms") for block in blocks}
            assert {key for key in row if "/" in key} - {"train/loss", "val/loss"} == per_block
            assert row["mfu"] is None and row["step_ms"] > 0 and row["mem_mb"] > 0 and row["tokens_per_s"] > 0
    assert rows[8].keys() == {"step", "tokens", "val/loss"}


def test_update_rms_is_of_the_update(small):
    """In Adam's first step every coordinate moves by its learning rate, so the RMS is known."""
    words = (*small, "--max_iters=1", "--weight_decay=0", "--decay_lr=False")
    run(*words)
    row = metrics(words)[0]
    assert row["update_rms/Norm"] == pytest.approx(1e-3, rel=1e-3)  # their weights are 1
    assert row["update_rms/QK"] == pytest.approx(8e-3 / 0.02, rel=0.1)  # theirs are N(0, 0.02)


def test_losses_of_the_two_halves(small, data_dir, tmp_path):
    """With test_loss the rows have the losses that two data sets would have whose validation texts are the halves."""
    text = ids_of(data_dir / "tiny", "val")
    for name, half in (("first", text[: len(text) // 2]), ("second", text[len(text) // 2 :])):
        write_dataset(tmp_path / name, {"train": ids_of(data_dir / "tiny", "train"), "val": half}, BYTES, "made up")
    assert run(*small, "--test_loss=True") == 0
    rows = metrics(small)
    assert [step for step in rows if "test/loss" in rows[step]] == [8]
    for name, key in (("first", "val/loss"), ("second", "test/loss")):
        out = f"--out_dir={tmp_path / 'out' / name}"
        assert run(*small, f"--data_dir={tmp_path}", f"--dataset={name}", out) == 0
        assert metrics([out])[8]["val/loss"] == rows[8][key]
    assert rows[8]["val/loss"] != rows[8]["test/loss"]


def test_the_last_evaluation_may_cover_the_whole_text(small, plain, data_dir, tmp_path):
    """That is all that full_eval changes; the loss is that of as many batches as the text holds."""
    batches = -(-(len(ids_of(data_dir / "tiny", "val")) - 1) // 32)  # of 2 sequences of 16
    full, many = (
        (*small, f"--out_dir={tmp_path / key}", key) for key in ("--full_eval=True", f"--eval_iters={batches}")
    )
    for words in (full, many):
        run(*words)
    whole = losses(full)
    assert whole[8][1] == losses(many)[8][1] != losses(plain)[8][1]
    assert {**whole, 8: None} == {**losses(plain), 8: None}


def test_seeds(small, plain, tmp_path):
    """The same ones give the same bits; data_seed changes the batches and not the start, seed both."""
    same, order, both = (
        (*small, f"--out_dir={tmp_path / word}", word) for word in ("--data_seed=1337", "--data_seed=5", "--seed=7")
    )
    for words in (same, order, both):
        run(*words)
    assert losses(plain) == losses(same) != losses(order)
    assert metrics(plain)[0]["val/loss"] == metrics(order)[0]["val/loss"]
    ends = [torch.load(out_dir(w) / "ckpt_00000008.pt", weights_only=True)["model"] for w in (plain, both)]
    assert all((ends[0][name] != ends[1][name]).any() for name in ends[0])  # losses could agree by chance


def test_evaluation_and_logging_leave_training_alone(small, plain):
    run(*small, "--eval_interval=0", "--log_interval=3")
    often, seldom = losses(plain), losses(small)
    assert list(seldom) == [0, 3, 6, 8]
    assert all(often[step][0] == seldom[step][0] for step in seldom) and often[8] == seldom[8]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_golden_losses(name, data_dir, tmp_path):
    """Twenty steps per model against stored numbers; a change that moves them needs a commit that says why.

    To a relative 1e-5. Other processors add in another order: with SSE4, AVX2 or no vectors, MKL or oneDNN, on one
    thread or two, these losses differ by up to 2e-7, a unit or two of float32's last place. That leaves a factor of 50
    for processors that are not at hand, and a wrong term moves losses by far more.
    """
    path = ROOT / "tests" / "golden" / f"{name}.json"
    words = (
        "--dataset=tiny", f"--data_dir={data_dir}", f"--model_type={name}", "--device=cpu", "--n_layer=2", "--n_head=2",
        "--n_embd=32", "--block_size=32", "--batch_size=4", "--gradient_accumulation_steps=2", "--eval_iters=4",
        "--eval_interval=10", "--max_iters=20", "--lr_decay_iters=20", "--warmup_iters=4", "--bias=True",
        f"--out_dir={tmp_path / 'out'}",
    )  # fmt: skip
    run(*words)
    found = [[loss for loss in pair if loss is not None] for pair in losses(words).values()]
    if os.environ.get("RECORD_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=0) + "\n")
    stored = json.loads(path.read_text())
    same = all(np.allclose(a, b, rtol=1e-5, atol=0) for a, b in zip(stored, found, strict=True))
    hint = "RECORD_GOLDEN=1 python -m pytest tests/test_train.py -k golden"
    assert same, f"stored: {stored}\nfound:  {found}\nif the change is meant, record them anew: {hint}"


def test_resume_of_a_finished_run(finished, capsys):
    before = losses(finished)
    assert run(*finished, "--init_from=resume") == 0
    assert losses(finished) == before
    assert run(*finished, "--init_from=resume", "--max_iters=3") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert losses(finished) == before


def test_resume_takes_the_architecture_and_names_what_changed(small, capsys):
    """All other keys are the command's, those of the optimizer's groups too."""
    run(*small, "--max_iters=4", "--decay_lr=False")
    rest = [w for w in small if not w.startswith(("--n_", "--block_size"))]
    changed = ("--decay_lr=False", "--lr_mult.QK=3", "--weight_decay=0.2", "--wd_mult.Norm=0")
    assert run(*rest, "--init_from=resume", *changed) == 0
    out = capsys.readouterr().out
    assert "max_iters was 4, is 8" in out and "weight_decay was 0.1, is 0.2" in out and "'QK': 3.0" in out
    assert json.loads((out_dir(small) / "config.json").read_text())["n_embd"] == 16
    assert metrics(small)[5]["lr/QK"] == 3e-3
    groups = groups_of(small)
    assert (groups["Norm"]["weight_decay"], groups["VO"]["weight_decay"], groups["QK"]["lr_mult"]) == (0, 0.2, 3)
    for word in ("--n_layer=3", "--model_type=llama", "--block_size=8", "--vocab_size=512", "--bias=True"):
        with pytest.raises(UserError, match=word[2:].split("=")[0]):
            run(*rest, "--init_from=resume", word)


def groups_of(words):
    """{block: group} of the optimizer in the last checkpoint."""
    saved = torch.load(out_dir(words) / "ckpt_00000008.pt", weights_only=True)
    return {group["block"]: group for group in saved["optimizer"]["param_groups"]}


def test_cures_resume_exactly_and_report_the_plain_loss(small, tmp_path):
    """z_loss changes what is learned, and so no loss before the first step."""
    words = (*small, "--model_type=llama", "--qk_norm=True", "--logit_softcap=5", "--z_loss=0.1")
    straight, without = ((*words, f"--out_dir={tmp_path / name}") for name in ("straight", "without"))
    run(*straight)
    run(*words, "--max_iters=6")
    rest = [w for w in words if not w.startswith(("--qk_norm", "--logit_softcap"))]
    run(*rest, "--init_from=resume")
    assert losses(words) == losses(straight)
    run(*without, "--z_loss=0")
    a, b = losses(straight), losses(without)
    assert a[0] == pytest.approx(b[0], rel=1e-6) and abs(a[7][0] - b[7][0]) > 1e-5
    with pytest.raises(UserError, match=r"logit_softcap=7.0: .* has logit_softcap=5.0"):
        run(*rest, "--init_from=resume", "--logit_softcap=7")


def test_auto(small, plain, capsys):
    """From scratch, then from the checkpoint: exactly, and a torn last row is cut."""
    assert run(*small, "--init_from=auto", "--max_iters=6") == 0
    assert "starting from scratch" in capsys.readouterr().out
    with open(out_dir(small) / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/lo')
    assert run(*small, "--init_from=auto") == 0
    assert "resuming from" in capsys.readouterr().out
    assert losses(small) == losses(plain)


def test_scratch_moves_the_old_run(finished, capsys):
    old = (out_dir(finished) / "metrics.jsonl").read_bytes()
    measured = ["sharpness_fisher_00000004.json", "spectrum_00000004.json", "spectrum.png", "curvature_00000004.json"]
    for name in measured:
        (out_dir(finished) / name).touch()
    run(*finished, "--max_iters=1")
    (folder,) = out_dir(finished).glob("old-*")
    assert str(folder) in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_bytes() == old
    assert {p.name for p in folder.iterdir()} >= {"config.json", "ckpt_00000008.pt", "ckpt_00000008.json", *measured}
    assert [p.name for p in out_dir(finished).glob("ckpt*.json")] == ["ckpt_00000001.json"]


def test_checkpoints_kept(small):
    def kept(*extra):
        run(*small, "--max_iters=4", "--eval_interval=1", "--eval_iters=1", *extra)
        return [int(p.stem[5:]) for p in sorted(out_dir(small).glob("ckpt_*.pt"))]

    assert kept() == [3, 4]
    assert kept("--keep_checkpoints=3") == [2, 3, 4]
    assert kept("--keep_checkpoints=-1") == list(range(5))


def test_best_checkpoint_is_kept(small):
    """A learning rate that only does harm makes the first evaluation after step 0 the best."""
    words = (*small, "--always_save_checkpoint=False", "--eval_interval=2", "--learning_rate=0.3", "--decay_lr=False")
    run(*words, "--max_iters=8")
    val = {step: row["val/loss"] for step, row in metrics(words).items() if "val/loss" in row}
    manifests = {int(p.stem[5:]): json.loads(p.read_text()) for p in out_dir(words).glob("ckpt_*.json")}
    best, saved = math.inf, [8]
    for step, loss in val.items():
        if loss < best:
            best = loss
            saved += [step] if step > 0 else []
    kept = set(sorted(set(saved))[-2:]) | {min((s for s in saved if s > 0), key=val.get)}
    assert set(manifests) == kept
    assert all(stated["val_loss"] == val[step] for step, stated in manifests.items())


def test_checkpoint_is_plain_and_complete(plain):
    path = out_dir(plain) / "ckpt_00000008.pt"
    saved = torch.load(path, weights_only=True)
    assert saved.keys() >= {"model", "optimizer", "model_config", "config", "step", "tokenizer"}
    assert saved["tokenizer"] == {"tokenizer": "bytes", "vocab_size": 256}
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest.keys() == {"step", "sha256", "bytes", "val_loss", "config"}
    assert manifest["bytes"] == path.stat().st_size and manifest["val_loss"] == metrics(plain)[8]["val/loss"]


def test_eval_only(finished, capsys):
    before = {p.name for p in out_dir(finished).iterdir()}
    loss = metrics(finished)[8]["val/loss"]
    assert run(*finished, "--init_from=resume", "--eval_only=True") == 0
    assert f"val {loss:.4f}" in capsys.readouterr().out
    assert {p.name for p in out_dir(finished).iterdir()} == before and metrics(finished)[8]["val/loss"] == loss


def test_eval_only_of_a_new_model_leaves_rows_without_a_checkpoint_alone(small, capsys):
    """As of a run that is before its first one, or that was killed there."""
    out_dir(small).mkdir()
    rows = out_dir(small) / "metrics.jsonl"
    rows.write_text('{"step": 0}\n')
    with FolderLock(out_dir(small)):
        assert run(*small, "--eval_only=True") == 0
    assert "validation loss 5." in capsys.readouterr().out
    assert rows.read_text() == '{"step": 0}\n' and {p.name for p in out_dir(small).iterdir()} == {rows.name, ".lock"}


@pytest.mark.parametrize("words", [(), ("--dry_run",)], ids=["run", "dry run"])
def test_a_validation_split_too_short_for_a_test_loss_is_found_at_the_start(finished, words):
    before = sorted(out_dir(finished).iterdir())
    with pytest.raises(UserError, match=r"half of .*val\.bin has fewer than block_size"):
        run(*finished, "--test_loss=True", "--block_size=1000", *words)
    assert sorted(out_dir(finished).iterdir()) == before


@pytest.mark.parametrize("policy,status,steps", [("stop", 3, [0, 1, 2, 3]), ("skip", 0, list(range(9)))])
def test_not_finite(small, monkeypatch, capsys, policy, status, steps):
    forward = Transformer.forward
    calls = iter(range(1000))

    def poisoned(self, tokens, targets=None, cache=None):
        loss = forward(self, tokens, targets, cache)
        return loss * math.nan if self.training and next(calls) == 3 * 4 + 1 else loss  # step 3, one micro-step

    monkeypatch.setattr(Transformer, "forward", poisoned)
    assert run(*small, f"--nan_policy={policy}", "--eval_interval=2") == status
    rows = metrics(small)
    assert list(rows) == steps
    assert rows[3]["train/loss"] == "NaN" and rows[3]["grad_norm"] == "NaN" and "update_rms/QK" not in rows[3]
    captured = capsys.readouterr()
    if policy == "stop":
        assert "step 3" in captured.err and "ckpt_00000002" in captured.err
    else:
        assert "1 skipped" in captured.out and math.isfinite(rows[8]["val/loss"])


def test_skip_gives_up_after_ten_in_a_row(small, monkeypatch):
    forward = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, *a: forward(self, *a) * (math.nan if self.training else 1))
    assert run(*small, "--nan_policy=skip", "--max_iters=50") == 3
    assert list(metrics(small)) == list(range(10))


def test_a_signal_in_the_step_that_diverges_claims_no_checkpoint(small, capsys):
    assert run(*small, "--learning_rate=1e30", "--eval_interval=0", stop=Stop(small, 0)) == 3
    out, err = capsys.readouterr()
    assert "saved at step" not in out and "last good checkpoint: none" in err and not list(out_dir(small).glob("ckpt*"))


@pytest.mark.parametrize("words", [(), ("--nan_policy=skip", "--max_iters=20")], ids=["stop", "skip"])
def test_a_diverged_run_displaces_no_checkpoint(small, capsys, words):
    """The rate of step 4 spoils the weights; every step has an evaluation, hence a checkpoint where it gives a loss."""
    assert run(*small, "--max_iters=4", "--eval_interval=1") == 0
    spoiled = (*small, "--init_from=resume", "--eval_interval=1", "--max_iters=8", *words)
    assert run(*spoiled, "--learning_rate=1e30", "--schedule=constant") == 3
    out, err = capsys.readouterr()
    assert "step 5: no checkpoint, since val/loss is nan" in out
    assert "last good checkpoint: " in err and err.split("checkpoint: ")[1].partition(";")[0].endswith("_00000004.pt")
    assert [path.name for path in manifests(out_dir(small))] == ["ckpt_00000003.json", "ckpt_00000004.json"]
    assert run(*small, "--init_from=resume") == 0 and math.isfinite(metrics(small)[8]["val/loss"])


@pytest.mark.parametrize("questions", [2, 7, 11])
def test_a_stop_saves_and_resumes_exactly(small, plain, questions):
    """A request that comes after so many questions: in the first evaluation, in a step, in another evaluation."""
    asked = iter(range(questions))
    stop = type("Stop", (), {"signal": "SIGTERM", "__bool__": lambda self: next(asked, None) is None})()
    assert run(*small, stop=stop) == 0
    assert len(metrics(small)) < 9
    assert list(out_dir(small).glob("ckpt*.pt"))
    assert run(*small, "--init_from=resume") == 0
    assert losses(small) == losses(plain)


def test_full_disk_leaves_run_and_old_checkpoint_alone(small, monkeypatch, capsys):
    save = torch.save

    def failing(state, file):
        if state["step"] == 4:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", failing)
    assert run(*small, "--eval_interval=2") == 0
    assert "ckpt_00000004" in capsys.readouterr().err
    checkpoints = {f"ckpt_0000000{step}.{suffix}" for step in (6, 8) for suffix in ("pt", "json")}
    assert {p.name for p in out_dir(small).iterdir()} == checkpoints | {"config.json", "metrics.jsonl", ".lock"}


BAD = {
    "n_embd": ("--n_embd=17",),
    "n_head": ("--n_head=4", "--n_kv_head=3"),
    "even": ("--model_type=llama", "--n_embd=18", "--n_head=6"),
    "dataset|data set": ("--dataset=nowhere",),
    "data/kjv/prepare.py": ("--dataset=kjv",),
    "cuda": ("--device=cuda",),
    "vocab_size": ("--vocab_size=100",),
    "at least 2": ("--keep_checkpoints=1",),
    "scratch": ("--init_from=scrath",),
    "block_size": ("--block_size=5000",),
    "logit_softcap=-1": ("--logit_softcap=-1",),
    "z_loss=-": ("--z_loss=-1e-4",),
    "residual_dtype=bfloat16: expected float32": ("--residual_dtype=bfloat16",),
}


@pytest.mark.parametrize("words", BAD.values(), ids=BAD.keys())
def test_a_mistake_leaves_the_old_run_where_it_was(finished, words, request):
    if words == ("--device=cuda",) and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    before = contents(out_dir(finished))
    with pytest.raises(UserError, match=request.node.callspec.id):
        run(*finished, *words)
    assert contents(out_dir(finished)) == before


def test_dry_run_prints_and_leaves_nothing(small, capsys):
    assert run(*small, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "tokens per step: 128" in out and "all checked" in out and '"n_inner": 64' in out
    assert not out_dir(small).exists()


def test_dry_run_without_the_data(small, capsys, monkeypatch):
    """The rates and the sizes are shown, for GPT-2's vocabulary or the one that is given; then the error."""
    monkeypatch.setattr(summary, "StepMemory", None)  # it takes seconds
    for words, embedding in (((), 50304 * 16), (("--vocab_size=1000",), 16000)):
        with pytest.raises(UserError, match="no data set 'absent'"):
            run(*small, "--dataset=absent", "--model_type=llama", *words, "--dry_run")
        out = capsys.readouterr().out
        assert f" {embedding:,} " in out, out
        assert "tokens per step" in out and "all checked" not in out
        assert ("GPT-2's, is assumed" in out) is not bool(words)
    with pytest.raises(UserError, match="no data set 'absent'"):
        run(*small, "--dataset=absent")
    assert "tokens per step" not in capsys.readouterr().out


def test_print_config(small, capsys):
    assert run(*small, "--blockwise=False", "--print_config") == 0
    config = json.loads(capsys.readouterr().out)
    assert config["device"] == "cpu" and config["dtype"] == "float32" and config["compile"] is False
    assert set(config["lr_mult"].values()) == {1.0} and config["n_embd"] == 16


def test_gradient_clipping_off(small, tmp_path):
    tight = (*small, "--grad_clip=1e-3", "--max_iters=4", f"--out_dir={tmp_path / 'tight'}")
    run(*small, "--grad_clip=0", "--max_iters=4")
    run(*tight)
    assert losses(small)[0] == losses(tight)[0]
    assert abs(losses(small)[3][0] - losses(tight)[3][0]) > 1e-4  # rounding moves a loss by 1e-6


def test_bfloat16_trains_and_resumes_exactly(small, tmp_path):
    words = (*small, "--dtype=bfloat16")
    straight = (*words, f"--out_dir={tmp_path / 'straight'}")
    run(*straight)
    run(*words, "--max_iters=5")
    run(*words, "--init_from=resume")
    assert losses(straight) == losses(words)
    assert losses(straight)[7][0] < losses(straight)[0][0]


def test_resume_in_another_precision(small):
    run(*small, "--max_iters=3")
    assert run(*small, "--init_from=resume", "--max_iters=5", "--dtype=float16") == 0
    assert run(*small, "--init_from=resume", "--max_iters=6") == 0
    assert run(*small, "--init_from=resume", "--dtype=float16") == 0


def test_ids_are_held_to_the_datas_own_vocabulary_on_a_resume_too(small, data_dir, tmp_path):
    """The embedding has 64 rows for 40 ids; an id of 50 would train a row that no tokenizer knows."""
    folder = tmp_path / "own" / "few"
    description = {"tokenizer": "chars", "vocab_size": 40, "chars": [chr(97 + i) for i in range(40)]}
    write_dataset(folder, {"train": [1, 2] * 50, "val": [1, 2] * 50}, description, "made up")
    words = (*small, f"--data_dir={tmp_path / 'own'}", "--dataset=few")
    run(*words, "--max_iters=2")
    np.array([50] * 100, dtype="<u2").tofile(folder / "train.bin")
    for init in ("scratch", "resume"):
        with pytest.raises(UserError, match="token id 50 where the vocabulary has 40"):
            run(*words, f"--init_from={init}")


def refused_flush(monkeypatch):
    """The file refuses rows 1 to 5: a checkpoint does not wait for them, and none is lost in the end."""
    flush, calls = logger.MetricsFile.flush, []

    def refusing(self, to_disk=False):
        calls.append(0)
        return False if 2 <= len(calls) <= 6 else flush(self, to_disk)

    monkeypatch.setattr(logger.MetricsFile, "flush", refusing)


def refused_sync(monkeypatch):
    """A disk may report that it is full only when rows are synced."""
    fsync, failures = os.fsync, [1]

    def failing(handle):
        if failures and os.readlink(f"/proc/self/fd/{handle}").endswith("metrics.jsonl"):
            failures.pop()
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("refused", [refused_flush, refused_sync])
def test_rows_that_are_not_on_the_disk_are_a_warning(small, monkeypatch, capsys, refused):
    refused(monkeypatch)
    assert run(*small) == 0
    assert "rows of metrics.jsonl are not on the disk" in capsys.readouterr().err
    assert list(metrics(small)) == list(range(9)) and (out_dir(small) / "ckpt_00000004.json").exists()


def test_an_interrupted_move_leaves_no_manifest(finished, monkeypatch):
    moved = []

    def dying(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(source)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        run(*finished, "--seed=5")
    assert not list(out_dir(finished).glob("ckpt_*.json"))


def test_wandb_that_fails_later_is_one_warning(small, monkeypatch, capsys):
    class Broken:
        id = "abc"

        def log(self, row, step):
            raise RuntimeError

    monkeypatch.setattr(logger, "start_wandb", lambda *_: Broken())
    assert run(*small, "--wandb_log=True") == 0
    assert capsys.readouterr().err.count("wandb failed") == 1 and len(metrics(small)) == 9


def test_a_run_too_short_for_a_profile_says_so(small, capsys):
    run(*small, "--profile=True", "--max_iters=2")
    assert not (out_dir(small) / "trace.json").exists() and "profile=True: no " in capsys.readouterr().err


def test_profile(small):
    run(*small, "--profile=True")
    assert "traceEvents" in json.loads((out_dir(small) / "trace.json").read_text())


def test_explicit_settings_reach_the_optimizer(small):
    run(*small, "--beta1=0.8", "--beta2=0.9", "--weight_decay=0.2", "--wd_mult.Emb=0.5")
    groups = groups_of(small)
    assert all(group["betas"] == (0.8, 0.9) for group in groups.values())
    decay = {block: group["weight_decay"] for block, group in groups.items()}
    assert decay == {"Emb": 0.1, "QK": 0.2, "VO": 0.2, "FFN": 0.2, "Norm": 0.2}
