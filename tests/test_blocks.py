"""The block table against our models and Hugging Face's, and the optimizer groups made from it."""

import ast
import copy

import pytest
import torch
import transformers
from conftest import ROOT
from torch import nn

from blockwise.blocks import BLOCKS, LR_MULT, block_type, blocks_of, param_groups
from model import ModelConfig, Transformer

ONES = dict.fromkeys(BLOCKS, 1.0)


def tiny(model_type="gpt2", tie=True, bias=False):
    torch.manual_seed(0)
    return Transformer(
        ModelConfig(
            model_type=model_type, vocab_size=13, block_size=6, n_layer=2, n_head=2, n_kv_head=1, n_embd=8, n_inner=12,
            bias=bias, dropout=0.0, rope_theta=1e4, norm_eps=1e-5, tie_weights=tie,
        )
    )  # fmt: skip


def tensors(table):
    return {block: len(members) for block, members in table.items()}


def numbers(table):
    return {block: sum(p.numel() for _, p in members) for block, members in table.items()}


def assert_partition(model, table):
    found = [id(p) for members in table.values() for _, p in members]
    assert sorted(found) == sorted(map(id, model.parameters()))
    assert sum(numbers(table).values()) == sum(p.numel() for p in model.parameters())


def backward(model):
    tokens = torch.arange(12).view(2, 6)
    model(tokens, tokens.flip(1)).backward()


# Our models


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_own_models_partition(model_type, tie, bias):
    model = tiny(model_type, tie, bias)
    table = blocks_of(model)
    assert_partition(model, table)
    gpt2, llama = model_type == "gpt2", model_type == "llama"
    expected = {
        "Emb": 13 * 8 + gpt2 * 6 * 8,
        "QK": 2 * (8 * 8 + 8 * 4 + bias * (8 + 4)),
        "VO": 2 * (8 * 4 + 8 * 8 + bias * (4 + 8)),
        "FFN": 2 * ((2 + llama) * 8 * 12 + bias * ((1 + llama) * 12 + 8)),
        "Norm": 5 * 8 * (2 if gpt2 and bias else 1),
        "Head": 13 * 8,
    }
    assert numbers(table) == {block: n for block, n in expected.items() if block != "Head" or not tie}
    assert list(table) == [block for block in BLOCKS if block in table]


@pytest.mark.parametrize(
    "name, block",
    [
        ("tok_emb.weight", "Emb"), ("pos_emb.weight", "Emb"), ("lm_head.weight", "Head"), ("norm_f.bias", "Norm"),
        ("blocks.3.attn.q_proj.bias", "QK"), ("blocks.0.attn.k_proj.weight", "QK"),
        ("blocks.11.attn.v_proj.weight", "VO"), ("blocks.11.attn.o_proj.weight", "VO"),
        ("blocks.1.mlp.gate_proj.weight", "FFN"), ("blocks.1.norm2.weight", "Norm"),
        ("transformer.h.0.attn.c_proj.weight", "VO"), ("transformer.h.0.mlp.c_proj.weight", "FFN"),
        ("gpt_neox.layers.0.attention.dense.bias", "VO"), ("embed_out.weight", "Head"),
        ("model.layers.0.self_attn.q_norm.weight", "Norm"), ("model.layers.0.self_attn.k_norm.weight", "Norm"),
        ("module._orig_mod.blocks.0.attn.q_proj.weight", "QK"), ("_orig_mod.module.tok_emb.weight", "Emb"),
        ("_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.mlp._checkpoint_wrapped_module.up_proj.weight", "FFN"),
        ("h.0.attn._fsdp_wrapped_module.c_proj._orig_mod.weight", "VO"),
    ],
)  # fmt: skip
def test_block_type(name, block):
    assert block_type(name) == block


@pytest.mark.parametrize(
    "name",
    ["blocks.0.attn.qq_proj.weight", "c_proj.weight", "h.0.crossattention.c_proj.weight", "mlp.dense.weight",
     "model.layers.0.self_attn.q_proj.lora_A.weight", "normal.weight", "weight", "tok_emb", ""],
)  # fmt: skip
def test_invented_name_raises(name):
    with pytest.raises(KeyError) as error:
        block_type(name)
    assert f"parameter {name}: add" in str(error.value)


def test_block_table_imports_nothing():
    tree = ast.parse((ROOT / "blockwise" / "blocks.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_a_single_unknown_parameter_stops_the_whole_table():
    model = tiny()
    model.blocks[1].adapter = nn.Linear(2, 2)
    with pytest.raises(KeyError, match=r"blocks\.1\.adapter\.weight"):
        param_groups(model, lr=1e-3)


# Hugging Face's models

SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GROUPED = dict(num_key_value_heads=2, head_dim=8, pad_token_id=0)
PLAIN = dict(Emb=1, QK=4, VO=4, FFN=6, Norm=5)  # tensors of two layers without biases or output layer
HUGGING_FACE = {
    "Llama": dict(PLAIN, Head=1),
    "Mistral": dict(PLAIN, Head=1),
    "Qwen2": dict(PLAIN, QK=8, VO=6, Head=1),
    "Qwen3": dict(PLAIN, Norm=9, Head=1),
    "Gemma": PLAIN,
    "Gemma2": dict(PLAIN, Norm=9),
    "Gemma3Text": dict(PLAIN, Norm=13),
    "Olmo": dict(Emb=1, QK=4, VO=4, FFN=6, Head=1),
    "Olmo2": dict(PLAIN, Norm=9, Head=1),
    "GPTNeoX": dict(Emb=1, QK=4, VO=4, FFN=8, Norm=10, Head=1),
    "GPT2": dict(Emb=2, QK=4, VO=4, FFN=8, Norm=10),
}
FUSED = {"GPTNeoX": "gpt_neox.layers.0.attention.query_key_value", "GPT2": "transformer.h.0.attn.c_attn"}


def hugging_face(name, **options):
    grouped = {} if name in FUSED else GROUPED
    config = getattr(transformers, f"{name}Config")(**SHAPE, **grouped, **options) if name != "GPT2" else (
        transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4,
                                bos_token_id=1, eos_token_id=2, **options)
    )  # fmt: skip
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_models_partition(name):
    model = hugging_face(name)
    table = blocks_of(model, fused_qkv="QK" if name in FUSED else None)
    assert_partition(model, table)
    assert tensors(table) == HUGGING_FACE[name]
    for block, members in table.items():
        assert {block} == {block_type(n, "QK") for n, _ in members}
        assert (block == "Norm") == all("norm" in n or "ln_" in n for n, _ in members)


@pytest.mark.parametrize("name", FUSED)
def test_fused_qkv(name):
    model = hugging_face(name)
    for function in (blocks_of, lambda m: param_groups(m, lr=1.0)):
        with pytest.raises(ValueError, match=FUSED[name] + r"\.(weight|bias) .*fused_qkv"):
            function(model)
    as_vo = tensors(blocks_of(model, fused_qkv="VO"))
    assert as_vo["VO"] == 8 and "QK" not in as_vo
    groups = {g["block"]: g for g in param_groups(model, lr=1.0, fused_qkv="QK")}
    assert len(groups["QK"]["params"]) == 4 and groups["QK"]["lr"] == 8.0


@pytest.mark.parametrize("tied", [lambda: tiny("gpt2"), lambda: tiny("llama"), lambda: hugging_face("Gemma"),
                                  lambda: hugging_face("Llama", tie_word_embeddings=True)])  # fmt: skip
def test_tied_output_counts_once_as_emb_in_any_order(tied):
    model = tied()
    named = list(model.named_parameters(remove_duplicate=False))
    assert len(named) == len(list(model.parameters())) + 1
    for order in (named, named[::-1]):
        table = blocks_of(order)
        assert_partition(model, table)
        assert "Head" not in table
        assert [n.split(".")[-2] for n, _ in table["Emb"]].count("lm_head") == 0


# Groups for the optimizer


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_groups_carry_rates_and_decay(optimizer):
    model = tiny("llama", tie=False)
    groups = param_groups(model, lr=1e-3, lr_mult={"QK": 2}, weight_decay=0.1, wd_mult={"Norm": 0, "Emb": 0.5})
    groups = optimizer(groups).param_groups
    assert [g["block"] for g in groups] == ["Emb", "QK", "VO", "FFN", "Norm", "Head"]
    for g in groups:
        multiplier = {**LR_MULT, "QK": 2}[g["block"]]
        assert (g["lr_mult"], g["lr"]) == (multiplier, 1e-3 * multiplier)
        assert g["weight_decay"] == {"Norm": 0, "Emb": 0.05}.get(g["block"], 0.1)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters()))


def test_the_papers_multipliers_are_the_default():
    groups = param_groups(tiny("llama", tie=False), lr=1.0)
    assert {g["block"]: g["lr"] for g in groups} == dict(Emb=10, QK=8, VO=4, FFN=6, Norm=1, Head=10)
    assert {g["weight_decay"] for g in groups} == {0.0}


def test_wrapped_models_and_iterables_give_the_same_groups():
    model = tiny()
    wrapped = [
        model.named_parameters(),
        list(model.named_parameters()),
        nn.ModuleDict({"module": model}),  # the names that DistributedDataParallel gives
        torch.compile(model),
        nn.ModuleDict({"module": torch.compile(model)}),
    ]
    expected = param_groups(model, lr=1e-3)
    for form in wrapped:
        groups = param_groups(form, lr=1e-3)
        assert [(g["block"], [id(p) for p in g["params"]]) for g in groups] == [
            (g["block"], [id(p) for p in g["params"]]) for g in expected
        ]


@pytest.mark.parametrize("table", ["lr_mult", "wd_mult"])
@pytest.mark.parametrize("unknown", ["qk", "MLP"])
def test_unknown_block_in_multipliers_raises(table, unknown):
    with pytest.raises(KeyError, match=f"{unknown}.*Emb, QK, VO, FFN, Norm, Head"):
        param_groups(tiny(), lr=1e-3, **{table: {"Emb": 1, unknown: 2}})


def test_unknown_block_for_fused_qkv_raises():
    for model in (tiny(), hugging_face("GPT2")):
        with pytest.raises(ValueError, match=r"'qkv'.*Emb, QK, VO, FFN, Norm, Head"):
            blocks_of(model, fused_qkv="qkv")


def test_multiplier_ten_makes_an_emb_step_ten_times_and_no_other():
    """Exact: from zero weights, with a power of two as learning rate, nothing is rounded differently."""
    steps = {}
    for multiplier in (1, 10):
        model = tiny()
        backward(model)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        torch.optim.SGD(param_groups(model, lr=2**-6, lr_mult={**ONES, "Emb": multiplier})).step()
        steps[multiplier] = blocks_of(model)
    assert set(steps[1]) == {"Emb", "QK", "VO", "FFN", "Norm"}
    for block, members in steps[1].items():
        for (name, one), (_, ten) in zip(members, steps[10][block], strict=True):
            assert one.abs().sum() > 0, name
            assert torch.equal(ten, one * (10 if block == "Emb" else 1)), name


@pytest.mark.parametrize("fused", [False, True])
def test_multipliers_of_one_are_bitwise_plain_adamw(fused):
    settings = dict(lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), fused=fused)
    plain = tiny("llama", tie=False)
    blockwise = copy.deepcopy(plain)
    groups = param_groups(blockwise, lr=1e-2, lr_mult=ONES, weight_decay=0.1)
    optimizers = [torch.optim.AdamW(plain.parameters(), **settings), torch.optim.AdamW(groups, **settings)]
    start = [p.detach().clone() for p in plain.parameters()]
    for _ in range(5):
        for model, optimizer in zip((plain, blockwise), optimizers, strict=True):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()
    for old, a, b in zip(start, plain.parameters(), blockwise.parameters(), strict=True):
        assert not torch.equal(old, a)
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_parameters_are_left_out(optimizer):
    model = tiny()
    frozen = [model.tok_emb.weight, model.pos_emb.weight, model.blocks[0].attn.q_proj.weight]  # all of Emb, part of QK
    for p in frozen:
        p.requires_grad_(False)
    groups = param_groups(model, lr=0.1)
    free = [id(p) for g in groups for p in g["params"]]
    assert sorted(free) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {id(p) for p in frozen}.isdisjoint(free)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model)
    optimizer(groups).step()
    for old, p in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, p) != p.requires_grad
