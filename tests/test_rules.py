"""block_beta2, init_std, block_init_std and lr_rule: what they reach, the rules' formulas, their defaults, mistakes."""

import math

import pytest
import torch
from conftest import out_dir, run

from blockwise import UserError
from blockwise.blocks import block_type
from blockwise.optimizers import build_optimizer, with_betas
from blockwise.settings import TrainConfig
from configurator import configure
from model import ModelConfig, Transformer
from train import make_optimizer

LLAMA = ("--model_type=llama", "--n_layer=2", "--n_head=2", "--n_embd=64", "--vocab_size=256", "--block_size=16")


def parse(*args):
    return configure(TrainConfig, args, "")[0]


def refusal(*args):
    with pytest.raises(UserError) as error:
        parse(*args).resolved()
    return str(error.value)


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
    "arg, expected",
    [
        ("block_beta2.Emb=1", "block_beta2.Emb=1.0: expected in [0, 1)"),
        ("block_beta2.emb=0.9", "unknown entry 'emb' of block_beta2; did you mean Emb?"),
        ("block_beta2=0.9", "block_beta2: expected a dict of float, got 0.9"),
        ("init_std=-1", "init_std=-1.0: expected at least 0"),
        ("block_init_std.QK=-0.1", "block_init_std.QK=-0.1: expected at least 0"),
        ("block_init_std.Norm=1", "unknown entry 'Norm' of block_init_std: --help lists them"),
    ],
)
def test_wrong_values(arg, expected):
    assert refusal(f"--{arg}") == expected


def test_sgd_has_no_beta2():
    message = refusal("--optimizer=sgd", "--block_beta2.Emb=0.99")
    assert message == "block_beta2={'Emb': 0.99}: expected none with optimizer=sgd, which has no second moment"
