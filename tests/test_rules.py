"""block_beta2, init_std, block_init_std and lr_rule: what they reach, the rules' formulas, their defaults, mistakes."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import metrics, out_dir, run

from blockwise import UserError
from blockwise.blocks import LR_MULT, block_type, param_groups
from blockwise.optimizers import build_optimizer, with_betas
from blockwise.rules import (
    RULES,
    Rates,
    Shape,
    completep,
    decay_for_budget,
    displacement,
    large_vocab,
    mup,
    paper,
    relative,
)  # fmt: skip
from blockwise.settings import TrainConfig
from blockwise.study.plan import Run
from blockwise.study.runner import write_job
from configurator import configure
from model import ModelConfig, Transformer
from train import make_optimizer

LLAMA = ("--model_type=llama", "--n_layer=2", "--n_head=2", "--n_embd=64", "--vocab_size=256", "--block_size=16")


def parse(*args):
    return configure(TrainConfig, args, "")[0]


def model_of(*args, seed=3):
    torch.manual_seed(seed)
    return Transformer(ModelConfig.of(parse(*LLAMA, *args).resolved()))


# beta2 and init std by block


@pytest.mark.parametrize("tie", (True, False))
def test_init_std_of_every_block(tie):
    """Also under the output projections' 1/sqrt(2 n_layer); a tied matrix has Emb's."""
    stds = {"Emb": 0.5, "QK": 0.1, "VO": 0.2, "Head": 0.3}
    args = [f"--block_init_std.{block}={std}" for block, std in stds.items()]
    for name, p in model_of("--init_std=0.05", f"--tie_weights={tie}", *args).named_parameters():
        if p.ndim == 2:
            narrow = 1 / math.sqrt(2 * 2) if "o_proj" in name or "down_proj" in name else 1
            assert p.std().item() == pytest.approx(narrow * stds.get(block_type(name), 0.05), rel=0.06), name


def test_init_std_scales_the_same_draws():
    plain, wide, empty = model_of(), model_of("--init_std=0.04"), model_of("--block_init_std.Head=0")
    for (name, p), q, r in zip(plain.named_parameters(), wide.parameters(), empty.parameters(), strict=True):
        assert torch.equal(2 * p, q) if p.ndim == 2 else torch.equal(p, q)
        assert torch.equal(p, r) != (name == "lm_head.weight")
    assert not empty.lm_head.weight.any()


def test_block_beta2_reaches_the_named_groups_alone():
    config = parse(*LLAMA, "--block_beta2.Emb=0.99", "--block_beta2.QK=0.5").resolved()
    groups = make_optimizer(config, model_of(), config.lr_mult).param_groups
    betas = {group["block"]: group["betas"] for group in groups}
    plain = (0.9, 0.95)
    assert betas == {"Emb": (0.9, 0.99), "QK": (0.9, 0.5), "VO": plain, "FFN": plain, "Norm": plain, "Head": plain}


@pytest.mark.parametrize("optimizer", ("adamw", "adam_mini", "lion", "muon"))
def test_a_beta2_of_its_own_steps_as_if_it_were_everybodys(optimizer):
    """Two steps of gradients of different size. Muon has no beta2; its AdamW part, here Emb, has."""
    moved = []
    for betas, block_beta2 in (((0.9, 0.95), {"Emb": 0.8}), ((0.9, 0.8), {})):
        torch.manual_seed(0)
        groups = [
            {"params": [torch.nn.Parameter(torch.zeros(4, 4))], "block": block, "lr": 0.1, "weight_decay": 0.0}
            for block in ("Emb", "QK")
        ]
        named = build_optimizer(optimizer, with_betas(groups, betas, block_beta2), betas, head_width=2)
        for size in (1.0, 3.0, -2.0):
            for group in groups:
                group["params"][0].grad = size * torch.randn(4, 4)
            named.step()
        moved.append([group["params"][0].detach() for group in groups])
    assert torch.equal(moved[0][0], moved[1][0])
    assert torch.equal(moved[0][1], moved[1][1]) == (optimizer == "muon")


def test_the_keys_reach_the_table_and_the_checkpoint(small, capsys):
    args = ("--block_beta2.Emb=0.99", "--block_init_std.Emb=0.1", "--init_std=0.03")
    run(*small, *args, "--max_iters=2")
    table = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert table["block"][-4:] == ["decay", "beta2", "init", "std"]
    ends = [table[block][-2:] for block in ("Emb", "QK", "Norm")]
    assert ends == [["0.99", "0.1"], ["0.95", "0.03"], ["0.95", "-"]]
    saved = torch.load(out_dir(small) / "ckpt_00000002.pt", weights_only=True)
    assert saved["config"]["block_beta2"] == {"Emb": 0.99} and saved["config"]["block_init_std"] == {"Emb": 0.1}
    assert {group["block"]: group["betas"][1] for group in saved["optimizer"]["param_groups"]}["Emb"] == 0.99
    run(*small, "--init_from=resume", "--max_iters=3", "--block_beta2.Emb=0.97")
    printed = capsys.readouterr().out
    assert "block_beta2 was {'Emb': 0.99}, is {'Emb': 0.97}" in printed and "init_std was 0.03, is 0.02" in printed
    saved = torch.load(out_dir(small) / "ckpt_00000003.pt", weights_only=True)
    assert {group["block"]: group["betas"][1] for group in saved["optimizer"]["param_groups"]}["Emb"] == 0.97


@pytest.mark.parametrize(
    "args, expected",
    [
        ("block_beta2.Emb=1", "block_beta2.Emb=1.0: expected in [0, 1)"),
        ("block_beta2.emb=0.9", "unknown entry 'emb' of block_beta2; did you mean Emb?"),
        ("block_beta2=0.9", "block_beta2: expected a dict of float, got 0.9"),
        ("init_std=-1", "init_std=-1.0: expected at least 0"),
        ("block_init_std.QK=-0.1", "block_init_std.QK=-0.1: expected at least 0"),
        ("block_init_std.Norm=1", "unknown entry 'Norm' of block_init_std: --help lists them"),
        ("optimizer=sgd --block_beta2.Emb=0.99", "block_beta2={'Emb': 0.99}: expected none with optimizer=sgd"),
        ("lr_rule=muP", "lr_rule: expected 'paper' or 'fitted' or 'tables' or 'mup' or 'completep'"),
        ("lr_rule=mup --lr_mult=auto", "lr_rule=mup: expected paper with lr_mult=auto, which measures"),
        ("lr_rule=relative --vocab_size=64 --init_std=0", "lr_rule=relative: the init std of Emb is 0, and"),
    ],
)
def test_wrong_values(args, expected):
    with pytest.raises(UserError) as error:
        parse(*f"--{args}".split()).resolved()
    assert str(error.value).startswith(expected)


# The rules

ANCHOR = Shape(width=128, depth=4, heads=4, vocabulary=4096, tokens_per_step=1024)
TWICE = Shape(width=256, depth=8, heads=8, vocabulary=4096, tokens_per_step=4096)
LARGE = Shape(width=512, depth=64, heads=8, vocabulary=50304, tokens_per_step=2**19, model_type="gpt2")  # heads of 64
H = 0.5**0.25  # what Q and K of these heads have
BLOCK_ORDER = ("Emb", "Head", "QK", "VO", "FFN", "Norm")
EXPECTED = {
    "paper": [(10, 10, 8, 4, 6, 1)] * 3,
    "fitted": [(12, 12, 4, 1, 1, 1)] * 3,
    "tables": [(4, 4, 1, 1, 1, 1)] * 3,
    "mup": [(12, 12, 1, 1, 1, 1), (12, 6, 0.5, 0.5, 0.5, 1), (12, 3, H / 4, 0.25, 0.25, 1)],
    "completep": [
        (12, 12, 1, 1, 1, 1), (12, 6, 0.5, 0.5**1.5, 0.5 ** (4 / 3), 1), (12, 3, H / 4, 0.25 / 4, 0.25 / 4, 1),
    ],
    "large_vocab": [
        (128**0.5, 12, 1, 1, 1, 1), (8, 6, 0.5, 0.5, 0.5, 1), (512**0.5 / 4, 3, H / 4, 0.25, 0.25, 1),
    ],
    "nanochat": [
        (14, 4, 1, 1, 1, 15), (14 / 2**0.5, 4 / 2**0.5, 0.5**0.5, 0.5**0.5, 0.5**0.5, 15), (7, 2, 0.5, 0.5, 0.5, 15),
    ],
    # at the anchor beta2 has a half-life of 40 steps
    "relative": [(8.46143, 8.46143, 1, 1, 1, 1), (12, 6, 1, 1, 1, 1), (12, 3, 1, 1, 1, 1)],
}  # fmt: skip
STDS = {
    "mup": [
        {}, {"QK": 0.5**0.5, "VO": 0.5**0.5, "FFN": 0.5**0.5, "Head": 0.5},
        {"QK": H / 2, "VO": 0.5, "FFN": 0.5, "Head": 0.25},
    ],
    "completep": [
        {}, {"QK": 0.5**0.5, "VO": 0.5**0.75, "FFN": 0.5 ** (1 / 2 + 1 / 6), "Head": 0.5},
        {"QK": H / 2, "VO": 0.25, "FFN": 0.25, "Head": 0.25},
    ],
    "nanochat": [{"Head": 0}] * 3,
}  # fmt: skip
STDS["large_vocab"] = STDS["mup"]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_at_three_shapes(name):
    for number, shape in enumerate((ANCHOR, TWICE, LARGE)):
        rule = RULES[name](shape)
        assert [rule.lr_mult[block] for block in BLOCK_ORDER] == pytest.approx(EXPECTED[name][number], rel=1e-5)
        expected = dict.fromkeys(BLOCK_ORDER, 1.0)
        if name not in ("paper", "fitted", "tables"):
            matrices = {block: pytest.approx(1 / rule.lr_mult[block]) for block in ("QK", "VO", "FFN")}
            expected = dict.fromkeys(BLOCK_ORDER, 0.0) | matrices
        assert rule.wd_mult == expected
        factors = dict.fromkeys(rule.block_init_std, 1.0) | STDS.get(name, [{}] * 3)[number]
        assert rule.block_init_std == {block: pytest.approx(0.02 * factor) for block, factor in factors.items()}
        slow = {"Emb": pytest.approx(0.5 ** (1 / 40)), "Head": pytest.approx(0.5 ** (1 / 40))}
        assert rule.block_beta2 == (slow if (name, shape) == ("relative", ANCHOR) else {})


def test_the_neutral_point():
    """At the anchor muP, CompleteP and the relative rule with AdamW's beta2 are one rule, and init is what it was."""
    rule = mup(ANCHOR)
    assert completep(ANCHOR) == rule
    assert large_vocab(replace(ANCHOR, vocabulary=1023)) == rule
    assert set(rule.block_init_std.values()) == {0.02} and set(rule.wd_mult.values()) == {0.0, 1.0}
    plain = relative(replace(ANCHOR, block_beta2={"Emb": 0.95, "Head": 0.95}))
    assert plain.lr_mult == pytest.approx(rule.lr_mult) and plain.wd_mult == pytest.approx(rule.wd_mult)
    assert paper(ANCHOR) == Rates(LR_MULT, dict.fromkeys(LR_MULT, 1.0), {}, {})


def test_a_tied_matrix_obeys_the_lower_rate():
    assert mup(replace(TWICE, tied=True)).lr_mult["Emb"] == 6
    assert relative(replace(LARGE, tied=True)).lr_mult["Emb"] == 3


def test_the_relative_rule_follows_init_and_beta2():
    rule = relative(replace(TWICE, init_std=0.04, block_init_std={"Emb": 0.005}, block_beta2={"Emb": 0.999}))
    assert rule.lr_mult["Emb"] == pytest.approx(3 * 5.8398 / 31.78, rel=1e-3)  # G of 0.95 and of 0.999
    assert rule.lr_mult["VO"] == pytest.approx(2) and rule.wd_mult["VO"] == pytest.approx(0.5)
    assert rule.lr_mult["Head"] == 6 and rule.block_beta2 == {"Emb": 0.999}
    assert relative(replace(ANCHOR, beta2=None)).lr_mult["Emb"] == pytest.approx(12)  # as for Lion
    assert relative(replace(ANCHOR, beta2=0.99)).block_beta2 == {}  # which lives longer already


def test_displacement_is_what_adam_does():
    """One gradient, then none: the sum of all steps over the rate, whatever the gradient's size."""
    for beta2 in (0.95, 0.99):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        adam = torch.optim.Adam([p], lr=1.0, betas=(0.9, beta2), eps=0.0)
        adam.state[p] = {"step": torch.tensor(1e6), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for grad in (3.0, *[0.0] * 400):
            p.grad = torch.tensor([grad], dtype=torch.float64)
            adam.step()
        assert -p.item() == pytest.approx(displacement(beta2), rel=1e-6)


def test_decay_for_budget():
    # 20 tokens a parameter: rate x decay x steps is 4.5
    assert decay_for_budget(1e-3, 1000, 20e6, 1e6) == pytest.approx(4.5, rel=0.01)
    assert decay_for_budget(2e-3, 1000, 1e6, 1e6) == pytest.approx(1 / 1.084 / 2)


# lr_rule


def test_the_papers_rule_is_the_default():
    config = parse().resolved()
    assert config == parse("--lr_rule=paper").resolved()
    assert config.lr_mult == LR_MULT and set(config.wd_mult.values()) == {1.0}
    assert config.block_beta2 == config.block_init_std == {}
    assert all(type(table) is dict for table in (config.lr_mult, config.wd_mult))  # what a checkpoint may hold


WIDE = ("--model_type=llama", "--n_embd=256", "--n_head=8", "--n_layer=4", "--vocab_size=4096", "--lr_rule=mup")
MUP = {"Emb": 12, "QK": 0.5, "VO": 0.5, "FFN": 0.5, "Norm": 1, "Head": 6}


def test_a_rule_fills_what_is_not_given(tmp_path):
    """Whether it is given before or after the rule, in a file or in its place, and also where it is the default."""
    path = tmp_path / "run.py"
    path.write_text("lr_mult = dict(Emb=10)\nwd_mult['Norm'] = 0.5\nblock_beta2 = {'QK': 0.9}\n")
    for args in (("--lr_mult.QK=8", *WIDE, path), (path, *WIDE, "--lr_mult.QK=8")):
        config = parse(*map(str, args)).resolved()
        assert config.lr_mult == MUP | {"Emb": 10, "QK": 8}
        assert config.wd_mult == {"Emb": 0, "QK": 2, "VO": 2, "FFN": 2, "Norm": 0.5, "Head": 0}
        assert config.block_beta2 == {"QK": 0.9} and config.block_init_std["Head"] == 0.01
        assert config.resolved() == config
    args = dict(model_type="llama", n_embd=256, n_head=8, n_layer=4, vocab_size=4096, lr_rule="mup")
    assert TrainConfig(**args, lr_mult={"QK": 8.0}).resolved().lr_mult == MUP | {"QK": 8}
    start = parse(*WIDE, "--lr_mult.QK=8")
    assert configure(TrainConfig, ["--n_embd=128", "--n_head=4"], "", start=start)[0].resolved().lr_mult["Emb"] == 12
    assert replace(start, n_embd=128, n_head=4).resolved().lr_mult == {**MUP, "QK": 8, "VO": 1, "FFN": 1, "Head": 12}


def test_without_blockwise_there_is_no_rule():
    config = parse(*WIDE, "--blockwise=False", "--block_beta2.Emb=0.99").resolved()
    assert set(config.lr_mult.values()) == set(config.wd_mult.values()) == {1.0}
    assert config.block_beta2 == {"Emb": 0.99} and config.block_init_std == {}


def test_a_studys_job_is_the_same_run(tmp_path):
    """Its file keeps what was given, also where that is the default, and leaves the rest to the rule."""
    config = replace(parse(*WIDE, "--lr_mult.Emb=10"), learning_rate=1e-3, out_dir=str(tmp_path))
    write_job(Run("", "arm", 1e-3, 1, config, tmp_path))
    assert "lr_mult = {'Emb': 10.0}" in (tmp_path / "job.py").read_text()
    assert parse(str(tmp_path / "job.py")).resolved() == config.resolved()


def test_a_rule_is_the_same_run_as_its_numbers(small, tmp_path):
    """With what depends on the vocabulary, which only the data knows; and the checkpoint states it."""
    rest = [arg for arg in small if not arg.startswith("--out_dir")] + ["--max_iters=3", "--tie_weights=False"]
    one, two = (f"--out_dir={tmp_path / name}" for name in ("one", "two"))
    assert run(*rest, "--lr_rule=relative", one) == 0
    saved = torch.load(tmp_path / "one/ckpt_00000003.pt", weights_only=True)["config"]
    assert saved["vocab_size"] == 256 and saved["lr_rule"] == "relative"
    beta2 = 0.5 ** (16 * 8 / 2560)  # 8 sequences of 16 tokens
    assert saved["block_beta2"] == {"Emb": pytest.approx(beta2), "Head": pytest.approx(beta2)}
    given = [f"--{key}={saved[key]}" for key in ("lr_mult", "wd_mult", "block_beta2", "block_init_std")]
    assert run(*rest, *given, two) == 0
    rows = [
        [{k: v for k, v in row.items() if not k.endswith(("_ms", "_per_s", "mfu", "mem_mb"))} for row in rows.values()]
        for rows in (metrics([one]), metrics([two]))
    ]
    assert len(rows[0]) == 4 and rows[0] == rows[1]


def test_dry_run_and_print_config_show_the_rates(small, capsys):
    run(*small, "--lr_rule=relative", "--tie_weights=False", "--dry_run")
    out = capsys.readouterr().out
    table = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert table["QK"][3] == "1.0e-03" and table["Emb"][4:6] == ["0", "0.96594"]
    run(*small, "--lr_rule=nanochat", "--print_config")
    assert json.loads(capsys.readouterr().out)["lr_mult"]["Norm"] == 15
    with pytest.raises(UserError, match="vocab_size=None: expected a number with lr_rule=relative"):
        run(*small, "--lr_rule=relative", "--print_config")


def test_a_hugging_face_model():
    from transformers import Gemma3Config, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=100,
        tie_word_embeddings=False,
    )  # fmt: skip
    rule = mup(Shape.of(config, tokens_per_step=64))
    groups = param_groups(LlamaForCausalLM(config), 1e-3, rule.lr_mult, 0.1, rule.wd_mult)
    rates = {group["block"]: group["lr"] for group in groups}
    h = 4**0.25  # heads of 8
    expected = {"Emb": 0.012, "QK": 0.004 * h, "VO": 0.004, "FFN": 0.004, "Norm": 0.001, "Head": 0.048}
    assert rates == pytest.approx(expected)
    assert {group["block"]: group["weight_decay"] for group in groups}["VO"] == pytest.approx(0.025)
    images_too = Gemma3Config(text_config={"hidden_size": 48, "num_hidden_layers": 3})
    assert (Shape.of(images_too, 64).width, Shape.of(images_too, 64).depth) == (48, 3)
