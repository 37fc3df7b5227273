"""The block table against our models and Hugging Face's, and the optimizer groups made from it."""

import ast
import copy
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from torch import nn

from blockwise.blocks import (
    BLOCK_OF,
    BLOCKS,
    KINDS,
    LR_MULT,
    PARAMETER_OF,
    block_type,
    blocks_of,
    describe_blocks,
    load_state,
    main,
    param_groups,
)
from blockwise.schedules import rate_lambdas
from model import ModelConfig, Transformer

sys.path.insert(0, str(ROOT / "bench"))
import models

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
    "name",
    ["blocks.0.attn.qq_proj.weight", "c_proj.weight", "h.0.crossattention.c_proj.weight", "mlp.dense.weight",
     "model.layers.0.self_attn.q_proj.lora_A.weight", "normal.weight", "tok_emb"],
)  # fmt: skip
def test_invented_name_raises(name):
    with pytest.raises(KeyError) as error:
        block_type(name)
    assert f"parameter {name}: add" in str(error.value)


def test_block_table_imports_nothing():
    """Only the command does: transformers, to make the model, sys, to leave, and the files behind its options."""
    tree = ast.parse((ROOT / "blockwise" / "blocks.py").read_text())
    command = [n for n in tree.body if isinstance(n, ast.If) or getattr(n, "name", "") in ("main", "without_weights")]
    allowed = [n for part in command for n in ast.walk(part) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert {n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)} == set(allowed)
    assert {alias.name for n in allowed for alias in n.names} == {
        "transformers", "sys", "split_qkv", "export", "read_rates",
    }  # fmt: skip


def test_a_copy_of_the_file_works_alone(tmp_path):
    """Without the project, without torch, without site-packages."""
    shutil.copy(ROOT / "blockwise" / "blocks.py", tmp_path / "copied.py")
    code = "import copied, sys; print(copied.block_type('h.0.attn.c_proj.weight'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "VO False\n", done.stderr


def test_every_kind_has_a_block_and_a_reason_and_no_end_is_in_two():
    for kind, block, why, modules, parameters in KINDS:
        assert block in BLOCKS and len(why) > 20 and (modules or parameters), kind
    for table, column in ((BLOCK_OF, 3), (PARAMETER_OF, 4)):
        assert len(table) == sum(len(row[column].split()) for row in KINDS)


@pytest.mark.parametrize(
    "name, block",
    [
        # the same leaf in two blocks; DistributedDataParallel, torch.compile, FSDP, checkpointing
        ("transformer.h.0.attn.c_proj.weight", "VO"), ("transformer.h.0.mlp.c_proj.weight", "FFN"),
        ("gpt_neox.layers.0.attention.dense.bias", "VO"), ("embed_out.weight", "Head"),
        ("_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.mlp._checkpoint_wrapped_module.up_proj.weight", "FFN"),
        ("h.0.attn._fsdp_wrapped_module.c_proj._orig_mod.weight", "VO"),
        ("module.model.layers.0.mlp.gate.weight", "Other"),
        ("_orig_mod.module._fsdp_wrapped_module.lm_head.weight", "Head"),
        # PEFT
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_E.default", "QK"),
        ("base_model.model.model.layers.0.input_layernorm.ln_tuning_layers.default.weight", "Norm"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default", "Emb"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "QK"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "QK"),
        ("base_model.model.model.layers.0.mlp.down_proj.lora_B.my_adapter.weight", "FFN"),
        ("base_model.model.model.layers.0.self_attn.o_proj.lora_magnitude_vector.default.weight", "VO"),
        ("base_model.model.model.embed_tokens.lora_embedding_A.default", "Emb"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "Head"),
        ("base_model.model.lm_head.original_module.weight", "Head"),
        ("base_model.model.transformer.h.0.mlp.c_fc.ia3_l.default", "FFN"),
        ("base_model.model.model.layers.0.mlp.experts.base_layer.gate_up_proj", "FFN"),
        ("base_model.model.model.layers.0.mlp.experts.lora_A.default.weight", "FFN"),
        # quantised and reparametrised
        ("model.layers.0.mlp.up_proj.qweight", "FFN"),
        ("model.layers.0.self_attn.v_proj.weight_scale_inv", "VO"),
        ("model.layers.0.self_attn.k_proj.parametrizations.weight.original0", "QK"),
        # low-rank projections
        ("model.layers.0.self_attn.q_a_proj.weight", "QK"), ("model.layers.0.self_attn.q_b_proj.weight", "QK"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "Other"),
        ("model.layers.0.self_attn.kv_b_proj.weight", "Other"),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", "Norm"),
        # experts, shared experts, routers
        ("model.layers.0.mlp.experts.gate_up_proj", "FFN"), ("model.layers.0.mlp.experts.down_proj_bias", "FFN"),
        ("model.layers.0.mlp.experts.7.up_proj.weight", "FFN"),
        ("model.layers.0.mlp.shared_experts.down_proj.weight", "FFN"),
        ("model.layers.0.mlp.router.weight", "Other"), ("model.layers.0.mlp.router.bias", "Other"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "Other"),
        # gates, sinks, learned scalars
        ("model.layers.0.self_attn.gate_proj.weight", "Other"), ("model.layers.0.mlp.gate_proj.weight", "FFN"),
        ("model.layers.0.self_attn.sinks", "Other"), ("model.layers.0.mlp.act_fn.alpha_p", "Other"),
        # state spaces and linear attention
        ("backbone.layers.0.mixer.in_proj.weight", "Other"), ("backbone.layers.0.mixer.A_log", "Other"),
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", "Other"),
        ("model.layers.0.linear_attn.conv1d.weight", "Other"), ("model.layers.0.linear_attn.norm.weight", "Norm"),
        ("model.layers.0.linear_attn.q_proj.weight", "QK"), ("model.layers.0.linear_attn.out_proj.weight", "VO"),
        # BERT's two output.dense; towers of other modalities
        ("bert.encoder.layer.0.attention.output.dense.weight", "VO"),
        ("bert.encoder.layer.0.output.dense.weight", "FFN"),
        ("bert.encoder.layer.0.attention.self.query.weight", "QK"),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj.weight", "Other"),
        # outside of a model's top, `head` could be anything
        ("head.weight", "Head"), ("module.head.weight", "Head"),
    ],
)  # fmt: skip
def test_names_of_every_kind(name, block):
    assert block_type(name) == block


@pytest.mark.parametrize("name", ["blocks.0.attn.head.weight", "layers.0.self_attn.output.weight", "x.A_log.weight"])
def test_a_name_that_says_enough_elsewhere_says_nothing_here(name):
    with pytest.raises(KeyError, match=r"block_of=.*unknown="):
        block_type(name)


def test_flat_parameters_of_fsdp_are_explained():
    with pytest.raises(KeyError, match="use_orig_params=True"):
        block_type("_fsdp_wrapped_module.layers.0._flat_param")


def test_a_single_unknown_parameter_stops_the_whole_table():
    model = tiny()
    model.blocks[1].adapter = nn.Linear(2, 2)
    with pytest.raises(KeyError, match=r"blocks\.1\.adapter\.weight"):
        param_groups(model, lr=1e-3)


def test_the_table_can_be_extended_from_outside():
    model = tiny()
    model.blocks[1].adapter = nn.Linear(2, 2)
    table = blocks_of(model, block_of={"adapter": "FFN"})
    assert_partition(model, table)
    assert tensors(table)["FFN"] == tensors(blocks_of(tiny()))["FFN"] + 2
    assert tensors(blocks_of(model, block_of={"adapter": "FFN", "adapter.bias": "Norm"}))["Norm"] == 6
    groups = param_groups(model, lr=1e-3, unknown="Other")
    assert (groups[-1]["block"], groups[-1]["lr"], len(groups[-1]["params"])) == ("Other", 1e-3, 2)
    assert block_type("h.0.mlp.gate.weight", block_of={"mlp.gate": "FFN"}) == "FFN"  # over the table's own
    assert block_type("h.0.attn.c_attn.weight", block_of={"attn.c_attn": "VO"}) == "VO"
    assert block_type("layers.0.self_attn.sinks", block_of={"self_attn.sinks": "QK"}) == "QK"
    assert block_type("vision_tower.x.q_proj.weight", block_of={"q_proj": "QK"}) == "QK"


@pytest.mark.parametrize("wrong", [{"block_of": {"adapter": "ffn"}}, {"unknown": "skip"}, {"fused_qkv": "qkv"}])
def test_arguments_that_are_no_block_types_raise(wrong):
    for function in (blocks_of, lambda m, **options: param_groups(m, lr=1.0, **options)):
        with pytest.raises(ValueError, match="not a block type: expected one of Emb, QK, VO, FFN, Norm, Head, Other"):
            function(tiny(), **wrong)


@pytest.mark.parametrize("end", ["1.adapter", "mlp.*", "module.q_proj", "_orig_mod.q_proj", "", 3])
def test_ends_that_match_nothing_raise(end):
    with pytest.raises(ValueError, match="expected the end of a path, without layer numbers"):
        blocks_of(tiny(), block_of={end: "FFN"})
    with pytest.raises(ValueError, match="expected a dict of block types"):
        blocks_of(tiny(), block_of=["q_proj"])


def attention(prefix="model.layers.0.self_attn.", end=".weight", **shapes):
    """[(name, parameter on the meta device)]"""
    return [(f"{prefix}{name}{end}", nn.Parameter(torch.empty(s, device="meta"))) for name, s in shapes.items()]


class Whole(list):
    """The same as a whole model gives them."""

    def named_parameters(self):
        return iter(self)


def blocks_by_end(named, **options):
    return {
        name.split("self_attn.")[1].removesuffix(".weight"): block
        for block, members in blocks_of(named, **options).items() for name, _ in members
    }  # fmt: skip


PLAIN_ATTENTION = dict(q_proj=(32, 16), k_proj=(8, 16), v_proj=(8, 16), o_proj=(16, 32))


def test_a_query_projection_that_holds_a_gate_too():
    """Qwen3-Next and Qwen3.5: rows for Q and as many for the output's gate."""
    gated = attention(**{**PLAIN_ATTENTION, "q_proj": (64, 16)})
    assert blocks_by_end(attention(**PLAIN_ATTENTION)) == dict(q_proj="QK", k_proj="QK", v_proj="VO", o_proj="VO")
    assert blocks_by_end(gated) == dict(q_proj="Other", k_proj="QK", v_proj="VO", o_proj="VO")
    assert blocks_by_end(gated, block_of={"q_proj": "QK"})["q_proj"] == "QK"
    mla = attention(q_proj=(64, 16), kv_a_proj_with_mqa=(9, 16), kv_b_proj=(8, 8), o_proj=(16, 32))
    assert blocks_by_end(mla)["q_proj"] == "QK"  # its heads are twice as wide for Q as for V
    others = attention("model.layers.1.self_attn.", **PLAIN_ATTENTION)
    assert [n for n, _ in blocks_of(gated + others)["Other"]] == ["model.layers.0.self_attn.q_proj.weight"]
    lora = [(name.replace(".weight", ".base_layer.weight"), p) for name, p in gated]
    lora += attention(end=".default.weight", **{"q_proj.lora_A": (4, 16), "q_proj.lora_B": (64, 4)})
    assert [n.split("self_attn.q_proj.")[1] for n, _ in blocks_of(lora)["Other"]] == [
        "base_layer.weight", "lora_A.default.weight", "lora_B.default.weight",
    ]  # fmt: skip


def test_keys_and_values_in_one_matrix():
    """Gemma 4's attention_k_eq_v: the v_proj is not there, and V is K's matrix."""
    shared = Whole(attention(q_proj=(32, 16), k_proj=(8, 16), o_proj=(16, 32)))
    assert blocks_by_end(shared) == dict(q_proj="QK", k_proj="Other", o_proj="VO")
    assert blocks_by_end(shared, fused_qkv="VO")["k_proj"] == "VO"
    assert blocks_by_end(shared, block_of={"self_attn.k_proj": "QK"})["k_proj"] == "QK"
    part = attention(end=".lora_A.default.weight", q_proj=(4, 16), k_proj=(4, 16))  # as a list of what is trained
    assert set(blocks_of(part)) == {"QK"}
    model = tiny("llama")
    model.blocks[0].attn.v_proj = model.blocks[0].attn.k_proj
    assert [name for name, _ in blocks_of(model)["Other"]] == ["blocks.0.attn.k_proj.weight"]
    assert "Other" not in blocks_of(model, fused_qkv="QK")


@pytest.mark.parametrize(
    "left_out, options",
    [
        ("v_proj", {"fused_qkv": "VO"}),  # a k_proj that may give V too
        ("o_proj", {"block_of": {"q_proj": "QK"}}),  # a q_proj taller than wide, which may hold a gate
        ("v_proj", {"block_of": {"k_proj.weight": "QK"}}),
    ],
)
def test_a_list_that_lacks_the_matrix_that_decides_is_refused(left_out, options):
    """As with v_proj or o_proj frozen and `filter(requires_grad)` of the rest."""
    part = [pair for pair in attention(**PLAIN_ATTENTION) if left_out not in pair[0]]
    for function in (blocks_of, describe_blocks, lambda named: param_groups(named, lr=1.0)):
        with pytest.raises(ValueError, match=f"no {left_out} beside it.* pass the whole model"):
            function(part)
    assert set(blocks_by_end(part, **options).values()) <= {"QK", "VO"}
    square = attention(q_proj=(16, 16), k_proj=(8, 16), v_proj=(8, 16))  # no gate fits: no question
    assert blocks_by_end(square)["q_proj"] == "QK"


@pytest.mark.parametrize("gone", [["q_proj"], ["o_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]])
@pytest.mark.parametrize("shape", [(0,), (512,)], ids=["ZeRO-3", "FSDP1"])
def test_shapes_that_sharding_took_away_are_not_guessed(gone, shape):
    gated = attention(**{**PLAIN_ATTENTION, "q_proj": (64, 16)})
    flat = [(n, nn.Parameter(torch.empty(shape)) if n.split(".")[-2] in gone else p) for n, p in gated]
    for named in (flat, Whole(flat)):
        with pytest.raises(ValueError, match=r"q_proj\.weight: its shape is lost .* before wrapping"):
            param_groups(named, lr=1.0)
    assert blocks_by_end(flat, block_of={"q_proj": "Other"})["q_proj"] == "Other"
    for (_, empty), (_, parameter) in zip(flat, gated, strict=True):
        empty.ds_shape = parameter.shape  # what ZeRO-3 notes
    assert blocks_by_end(flat) == dict(q_proj="Other", k_proj="QK", v_proj="VO", o_proj="VO")


def test_biases_and_adapters_have_no_shape_to_miss():
    biases = attention(end=".bias", **{name: (shape[0],) for name, shape in PLAIN_ATTENTION.items()})
    dora = attention(end=".lora_magnitude_vector.default.weight", q_proj=(32,), o_proj=(16,))
    assert blocks_by_end(attention(**PLAIN_ATTENTION) + biases + dora)["q_proj"] == "QK"


@pytest.mark.parametrize(
    "wrong",
    [lambda m: m.parameters(), lambda m: list(m.parameters()), lambda m: dict(m.named_parameters()),
     lambda m: [nn.Parameter(torch.zeros(2, 3))], lambda m: param_groups(m, lr=1.0)],
    ids=["parameters()", "list", "dict", "two rows", "groups"],
)  # fmt: skip
def test_parameters_without_names_are_refused(wrong):
    for function in (blocks_of, describe_blocks, lambda named: param_groups(named, lr=1.0)):
        with pytest.raises(
            ValueError, match=r"expected a model, or \(name, parameter\) pairs .* pass the model itself"
        ):
            function(wrong(tiny()))


@pytest.mark.parametrize(
    "name, hint",
    [("encoder.attn.Q_Proj.weight", '"QK"'), ("h.0.mlp.upproj.weight", '"FFN"'), ("x.value_proj2.bias", '"VO"'),
     ("x.attn.tables.weight", "one of Emb, QK"), ("x.dense.weight", "one of Emb, QK")],
)  # fmt: skip
def test_a_hint_guesses_from_the_name_or_not_at_all(name, hint):
    end = ".".join(name.split(".")[-3:-1])
    with pytest.raises(KeyError) as error:
        block_type(name)
    assert f'block_of={{"{end}": {hint}' in error.value.args[0]


def test_a_hint_can_be_followed():
    with pytest.raises(KeyError, match='parameter weight: pass unknown="Other"'):
        param_groups(nn.Linear(2, 2), lr=1.0)
    with pytest.raises(ValueError, match="two learning rates: say which block it counts as"):
        param_groups(nn.ModuleDict({"self_attn": nn.MultiheadAttention(8, 2)}), lr=1.0)


# The models of other trainers, by the names in their sources

LLAMA_LIKE = "feed_forward.w1 feed_forward.w2 feed_forward.w3"
TRAINERS = {
    "litgpt": dict(
        fused="transformer.h.0.attn.qkv", Emb="transformer.wte", Head="lm_head", VO="transformer.h.0.attn.proj",
        QK="h.0.attn.q_a_proj h.0.attn.q_b_proj",
        FFN="h.0.mlp.fc h.0.mlp.proj h.0.mlp.fc_1 h.0.mlp.fc_2 h.0.mlp.experts.3.fc_1 h.0.mlp.experts.3.proj "
        "h.0.mlp.shared_experts.fc_2 h.0.mlp.shared_experts.proj",
        Norm="h.0.norm_1 h.0.norm_2 h.0.attn.norm_q h.0.attn.norm_k h.0.post_attention_norm transformer.ln_f",
        Other="h.0.mlp.gate h.0.attn.kv_a_proj_with_mqa",
    ),
    "nanochat": dict(
        Emb="transformer.wte value_embeds.3", QK="transformer.h.0.attn.c_q transformer.h.0.attn.c_k",
        VO="transformer.h.0.attn.c_v transformer.h.0.attn.c_proj", Head="lm_head",
        FFN="transformer.h.0.mlp.c_fc transformer.h.0.mlp.c_proj",
        Other="transformer.h.1.attn.ve_gate smear_gate =resid_lambdas =x0_lambdas =smear_lambda =backout_lambda",
    ),
    "torchtitan": dict(
        fused="layers.0.attention.qkv_linear.wqkv", Emb="tok_embeddings", Head="lm_head output",
        QK="layers.0.attention.qkv_linear.wq layers.0.attention.qkv_linear.wk layers.0.attention.wq_a "
        "layers.0.attention.wq_b", VO="layers.0.attention.qkv_linear.wv layers.0.attention.wo",
        FFN=f"{LLAMA_LIKE} =layers.1.moe.routed_experts.inner_experts.w1_EFD layers.1.moe.shared_experts.w2",
        Norm="layers.0.attention_norm layers.0.ffn_norm norm layers.0.attention.q_norm layers.0.attention.kv_norm",
        Other="layers.1.moe.router.gate layers.0.attention.wkv_a layers.0.attention.wkv_b",
    ),
    "OLMo-core": dict(
        fused="blocks.0.attention.w_qkv", Emb="embeddings", QK="blocks.0.attention.w_q blocks.0.attention.w_k",
        VO="blocks.0.attention.w_v blocks.0.attention.w_out", Head="lm_head.w_out", Norm="blocks.0.feed_forward_norm "
        "lm_head.norm blocks.0.attention.q_norm", FFN=f"{LLAMA_LIKE} =blocks.1.feed_forward_moe.experts.mlp.w3 "
        "blocks.1.feed_forward_moe.shared_mlp.w1",
        Other="blocks.0.attention.w_g blocks.1.feed_forward_moe.router =blocks.0.attention.sq =lm_head.sz "
        "=blocks.0.attn_alpha =blocks.0.feed_forward.sw3",
    ),
    "Megatron-LM": dict(
        fused="decoder.layers.0.self_attention.linear_qkv", Head="output_layer",
        Emb="embedding.word_embeddings embedding.position_embeddings embedding.tokentype_embeddings",
        QK="decoder.layers.0.cross_attention.linear_q decoder.layers.0.self_attention.linear_q_up_proj",
        VO="decoder.layers.0.self_attention.linear_proj",
        FFN="decoder.layers.0.mlp.linear_fc1 decoder.layers.0.mlp.linear_fc2 =d.0.mlp.experts.linear_fc1.weight3 "
        "d.0.mlp.experts.local_experts.2.linear_fc2 d.0.mlp.shared_experts.linear_fc1",
        Norm="decoder.final_layernorm decoder.layers.0.pre_mlp_layernorm =d.0.mlp.linear_fc1.layer_norm_weight",
        Other="decoder.layers.0.mlp.router decoder.layers.0.self_attention.linear_kv_down_proj "
        "=decoder.layers.0.mlp.shared_experts.gate_weight mtp.layers.0.eh_proj",
    ),
    "GPT-NeoX": dict(
        fused="sequential.2.attention.query_key_value", Emb="sequential.0.word_embeddings",
        VO="sequential.2.attention.dense",
        FFN="sequential.2.mlp.linear1 sequential.2.mlp.linear2 sequential.2.mlp.dense_h_to_4h",
        Norm="sequential.2.input_layernorm sequential.45.norm", Head="sequential.46.final_linear", QK="",
        Other="rm_linear",
    ),
    "llama2.c": dict(
        Emb="tok_embeddings", QK="layers.0.attention.wq layers.0.attention.wk", FFN=LLAMA_LIKE, Head="output",
        VO="layers.0.attention.wv layers.0.attention.wo", Norm="layers.0.attention_norm layers.0.ffn_norm norm",
        Other="",
    ),
    "modded-nanogpt": dict(
        Emb="embed =value_embeds bigram_embed", QK="=qk_bank", VO="=vo_bank", FFN="=mlp_bank", Head="lm_head", Norm="",
        Other="smear_gate =ve_gate_bank =post_lambdas =resid_lambdas =scalars =mudd_w1 =mudd_b2 =_mudd_gate_scale",
    ),
    "nn.TransformerEncoderLayer": dict(
        fused="layers.0.self_attn.in_proj_weight", Emb="", QK="",
        VO="layers.0.multihead_attn.out_proj self_attn.out_proj",
        FFN="linear1 linear2 encoder.layers.0.linear1 decoder.layers.0.linear2",
        Norm="norm1 layers.0.norm3", Head="", Other="",
    ),
    "T5": dict(
        Emb="shared decoder.embed_tokens",
        QK="encoder.block.0.layer.0.SelfAttention.q block.0.layer.1.EncDecAttention.k",
        VO="encoder.block.0.layer.0.SelfAttention.v block.0.layer.1.EncDecAttention.o", Head="lm_head",
        FFN="block.0.layer.1.DenseReluDense.wi_0 block.0.layer.1.DenseReluDense.wo", Norm="encoder.final_layer_norm",
        Other="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_names_of_other_trainers(trainer):
    names = dict(TRAINERS[trainer])
    fused = names.pop("fused", "")
    if fused:
        with pytest.raises(ValueError, match="holds Q, K and V"):
            block_type(fused if fused.endswith("in_proj_weight") else f"{fused}.weight")
    for block, ends in names.items():
        for end in ends.split():
            assert block_type(end[1:] if end.startswith("=") else f"{end}.weight") == block, end


@pytest.mark.parametrize("stack", [False, True])
def test_torchs_own_layers_split(stack):
    model = nn.TransformerDecoderLayer(8, 2, 16)
    model = nn.TransformerDecoder(model, 2) if stack else model
    table = blocks_of(model, fused_qkv="QK")
    assert_partition(model, table)
    layers = 2 if stack else 1
    assert tensors(table) == {"QK": 4 * layers, "VO": 4 * layers, "FFN": 4 * layers, "Norm": 6 * layers}


HEADS = (
    "LlamaForSequenceClassification LlamaForTokenClassification LlamaForQuestionAnswering GPT2DoubleHeadsModel "
    "BertForSequenceClassification BertForPreTraining RobertaForSequenceClassification ElectraForPreTraining "
    "DistilBertForSequenceClassification XLNetForSequenceClassification BartForSequenceClassification "
    "BartForConditionalGeneration T5ForConditionalGeneration MT5ForConditionalGeneration MBartForConditionalGeneration "
    "LongT5ForConditionalGeneration MarianMTModel PegasusForConditionalGeneration"
)


@pytest.mark.parametrize("name", HEADS.split())
def test_heads_of_tasks_and_encoder_decoders_split(name):
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(num_hidden_layers=1, encoder_layers=1, decoder_layers=1, num_layers=1))
    table = blocks_of(model, fused_qkv="QK")
    assert_partition(model, table)
    assert {"Emb", "QK", "VO", "FFN", "Norm"} <= set(table) | ({"VO"} if "GPT2" in name else set())


@pytest.mark.parametrize(
    "end", ["attn.c_attn", "attention.query_key_value", "self_attn.qkv_proj", "attn.Wqkv", "self_attn.in_proj"]
)
def test_every_fused_form(end):
    with pytest.raises(ValueError, match=f"{end}.weight holds Q, K and V.*fused_qkv="):
        block_type(f"layers.0.{end}.weight")
    assert block_type(f"layers.0.{end}.bias", fused_qkv="VO") == "VO"


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


FAMILIES = (
    "AfmoeForCausalLM", "BertLMHeadModel", "BioGptForCausalLM", "CTRLLMHeadModel", "DeepseekV3ForCausalLM",
    "DeepseekV4ForCausalLM", "FalconH1ForCausalLM", "Gemma3nForCausalLM", "Gemma4ForCausalLM", "GPTJForCausalLM",
    "GptOssForCausalLM", "JambaForCausalLM", "Llama4ForCausalLM", "Mamba2ForCausalLM", "MixtralForCausalLM",
    "OPTForCausalLM", "PhiForCausalLM", "Qwen3NextForCausalLM", "RwkvForCausalLM", "XLNetLMHeadModel",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_twenty_families_split_as_the_page_says(name):
    """A partition; modules of a class called norm are Norm and no others, but those inside of an Other part."""
    model = models.without_weights(name, models.causal_classes()[name])
    table = blocks_of(model)
    assert_partition(model, table)
    row = next(line for line in (ROOT / "docs/models.md").read_text().splitlines() if line.startswith(f"| {name} |"))
    assert row.split("|")[2:-1] == [f" {models.millions(numbers(table).get(block))} " for block in BLOCKS]
    for block, members in table.items():
        for parameter, _ in members:
            is_norm = "norm" in type(model.get_submodule(parameter.rpartition(".")[0])).__name__.lower()
            assert is_norm == (block == "Norm") or (is_norm and block == "Other"), parameter


def test_phi3_and_a_mixture_of_experts():
    """One that splits by split_qkv and one that splits as it is, of the classes that `bench/models.py` looks at."""
    status, row = models.split("Phi3ForCausalLM", "phi3")
    assert status == "split_qkv" and row["QK"] == row["VO"] == 32 * 2 * 3072 * 3072
    status, row = models.split("GptOssForCausalLM", "gpt_oss")
    assert status == "split" and row["Other"] == 36 * (128 * 2880 + 128 + 64)  # routers, and a sink for every head
    assert row["FFN"] == 36 * 128 * (2880 * 2 * 2880 + 2 * 2880 + 2880 * 2880 + 2880)


def test_the_page_of_models_states_that_all_classes_split():
    text = (ROOT / "docs/models.md").read_text()
    numbers = re.search(
        r"(\d+) of (\d+) classes split as they are, (\d+) by split_qkv\(model\); (\d+) are refused", text
    )
    as_they_are, built, by_split, refused = map(int, numbers.groups())
    assert (as_they_are + by_split, refused) == (built, 0) and built > 170
    for mark, count in (("", as_they_are), (r"\\\* ", by_split)):
        assert len(re.findall(rf"^\| \w+ {mark}(?:\| *[\d.,e-]* ){{7}}\|$", text, re.MULTILINE)) == count
    for kind, block, why, _, _ in KINDS:
        assert f"| {kind} | {block} | {why} |" in text


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


def test_a_shared_parameter_counts_by_all_of_its_names():
    """An output layer that is made before the embedding, and V of one layer in another one too."""
    model = tiny("llama", tie=False)
    first, second = model.blocks
    second.attn.v_proj = first.attn.v_proj
    table = blocks_of(nn.ModuleDict({"lm_head": model.lm_head, "rest": model}))
    assert_partition(model, table)
    assert len(table["QK"]) == 4 and len(table["VO"]) == 3 and "Other" not in table
    model.tok_emb.weight = model.lm_head.weight
    table = blocks_of(nn.ModuleDict({"lm_head": model.lm_head, "rest": model}))
    assert "Head" not in table and [name for name, _ in table["Emb"]] == ["rest.tok_emb.weight"]


# Groups for the optimizer


def test_groups_carry_rates_and_decay():
    """The paper's multipliers where none are given."""
    assert dict(Emb=10, QK=8, VO=4, FFN=6, Norm=1, Head=10) == LR_MULT
    model = tiny("llama", tie=False)
    groups = param_groups(model, lr=1e-3, lr_mult={"QK": 2}, weight_decay=0.1, wd_mult={"Norm": 0, "Emb": 0.5})
    groups = torch.optim.AdamW(groups).param_groups
    assert [g["block"] for g in groups] == ["Emb", "QK", "VO", "FFN", "Norm", "Head"]
    for g in groups:
        multiplier = {**LR_MULT, "QK": 2}[g["block"]]
        assert (g["lr_mult"], g["lr"]) == (multiplier, 1e-3 * multiplier)
        assert g["weight_decay"] == {"Norm": 0, "Emb": 0.05}.get(g["block"], 0.1)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters()))


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -0.5])
@pytest.mark.parametrize("table", ["lr_mult", "wd_mult"])
def test_multipliers_that_are_no_rates_raise(table, value):
    with pytest.raises(ValueError, match=rf"{table}\['Emb'\]={value}: expected a finite number"):
        param_groups(tiny(), lr=1e-3, **{table: {"QK": 0.0, "Emb": value}})


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"lr_mult": 3.0}, {"lr_mult": {"QK": "3"}}]
)
def test_rates_that_are_none_raise(wrong):
    (key,) = wrong
    with pytest.raises(ValueError, match=f"^{key}.*: expected a "):
        param_groups(tiny(), **{"lr": 1e-3, **wrong})


def trained(**options):
    """AdamW over the groups of a tiny model, one step in."""
    model = tiny("llama", tie=False)
    backward(model)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1, **options))
    optimizer.step()
    return model, optimizer


def test_a_loaded_state_leaves_the_rates_as_asked():
    (_, first), (_, second) = trained(), trained(lr_mult={"Emb": 20.0, "VO": 1.0}, wd_mult={"Norm": 0.0})
    for p in second.state.values():
        p["exp_avg"].zero_()
    load_state(second, first.state_dict())
    asked = {group["block"]: (group["lr_mult"], group["lr"], group["weight_decay"]) for group in second.param_groups}
    assert (asked["Emb"], asked["VO"], asked["Norm"]) == ((20.0, 2e-2, 0.1), (1.0, 1e-3, 0.1), (1.0, 1e-3, 0.0))
    pairs = zip(first.state.values(), second.state.values(), strict=True)
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) and a["exp_avg"].any() for a, b in pairs)


def test_a_loaded_state_leaves_the_rates_to_a_scheduler():
    """The saved run had one; its base rates are not those of the groups that are asked for now."""
    (_, first), (_, second) = trained(), trained(lr_mult={"Emb": 20.0})
    torch.optim.lr_scheduler.LambdaLR(first, lambda step: 1.0)
    load_state(second, first.state_dict())
    torch.optim.lr_scheduler.LambdaLR(second, lambda step: 1.0)
    assert {group["block"]: group["lr"] for group in second.param_groups}["Emb"] == 2e-2


@pytest.mark.parametrize("block_of", [{"v_proj": "QK", "k_proj": "VO"}, {"q_proj": "FFN"}])
def test_a_state_of_other_groups_is_refused(block_of):
    """k_proj and v_proj have equal shapes: torch would exchange their moments, as it goes by position."""
    (_, first), (_, second) = trained(), trained(block_of=block_of)
    saved = first.state_dict()
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(ValueError, match="group QK has other parameters than in the saved state"):
        load_state(second, saved)
    assert str(before) == str(second.state_dict())
    for group in saved["param_groups"]:
        del group["members"]  # as before it was noted
    load_state(trained()[1], saved)


def test_wrappers_do_not_change_the_members():
    model = tiny("llama")
    members = [group["members"] for group in param_groups(model, lr=1.0)]
    wrapped = [(f"module._orig_mod.{name}", p) for name, p in model.named_parameters()]
    assert [group["members"] for group in param_groups(wrapped, lr=1.0)] == members
    assert members == [group["members"] for group in param_groups(tiny("llama"), lr=2.0)]


# Schedules of others


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_rate_lambdas_take_every_group_to_one_floor(schedule):
    _, optimizer = trained(lr_mult={"VO": 0.0})
    lambdas = rate_lambdas(optimizer.param_groups, schedule, floor=1e-4, warmup=3, end=20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambdas)
    rates = []
    for _ in range(25):
        rates.append({group["block"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    for block, mult in {**LR_MULT, "VO": 0.0}.items():
        series = [row[block] for row in rates]
        assert max(series) == pytest.approx(1e-3 * mult), block
        assert series[20:] == pytest.approx([1e-4 if mult else 0.0] * 5), block
        assert series[0] == pytest.approx(1e-3 * mult / 4), block
    with pytest.raises(ValueError, match=r"floor=0.002: expected at most the lowest peak, 0.001"):
        rate_lambdas(trained()[1].param_groups, floor=2e-3, warmup=3, end=20)
    for wrong in ({"schedule": "cosin"}, {"floor": -1.0}, {"floor": float("nan")}, {"warmup": 30}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*: expected"):
            rate_lambdas(optimizer.param_groups, **{"floor": 1e-4, "warmup": 3, "end": 20, **wrong})


@pytest.mark.parametrize("default, floor", [(1e-3, 6e-5), (2e-3, 3e-5)])
def test_transformers_floors_are_a_share_of_the_optimizers_default_rate(default, floor):
    """As the page says: `AdamW(groups, lr=...)` with the Norm blocks' rate makes `min_lr` their floor."""
    optimizer = torch.optim.AdamW(param_groups(tiny(), lr=1e-3), lr=default)
    options = {"scheduler_specific_kwargs": {"min_lr": 6e-5}}
    scheduler = transformers.get_scheduler("cosine_with_min_lr", optimizer, 2, 20, **options)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    rates = {group["block"]: group["lr"] for group in optimizer.param_groups}
    assert rates["Norm"] == pytest.approx(floor) and rates["Emb"] == pytest.approx(10 * floor)


KEEP, LOSE = "keep the ratios", "lose them"
SCHEDULERS = {
    "LambdaLR": (KEEP, lambda s, o: s.LambdaLR(o, lambda step: 1 - step / 101)),
    "CosineAnnealingLR": (KEEP, lambda s, o: s.CosineAnnealingLR(o, 100)),
    "LinearLR": (KEEP, lambda s, o: s.LinearLR(o, 1, 0.1, 100)),
    "ExponentialLR": (KEEP, lambda s, o: s.ExponentialLR(o, 0.98)),
    "PolynomialLR": (KEEP, lambda s, o: s.PolynomialLR(o, 101)),
    "CosineAnnealingLR(eta_min)": (LOSE, lambda s, o: s.CosineAnnealingLR(o, 100, eta_min=6e-5)),
    "CosineAnnealingWarmRestarts(eta_min)": (LOSE, lambda s, o: s.CosineAnnealingWarmRestarts(o, 100, eta_min=6e-5)),
    "cosine": (KEEP, lambda s, o: transformers.get_cosine_schedule_with_warmup(o, 10, 100)),
    "linear": (KEEP, lambda s, o: transformers.get_linear_schedule_with_warmup(o, 10, 100)),
    "wsd": (KEEP, lambda s, o: transformers.get_wsd_schedule(o, 10, 20, num_stable_steps=70, min_lr_ratio=0.1)),
    "polynomial": (KEEP, lambda s, o: transformers.get_polynomial_decay_schedule_with_warmup(o, 10, 100, lr_end=6e-5)),
    "OneCycleLR": (LOSE, lambda s, o: s.OneCycleLR(o, max_lr=1e-3, total_steps=101)),
    "CyclicLR": (LOSE, lambda s, o: s.CyclicLR(o, 1e-4, 1e-3, step_size_up=50, cycle_momentum=False)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_page_says_which_schedulers_keep_the_ratios(name):
    expected, make = SCHEDULERS[name]
    optimizer = torch.optim.AdamW(param_groups(tiny(), lr=1e-3))  # without gradients, which no schedule reads
    scheduler, worst = make(torch.optim.lr_scheduler, optimizer), 1.0
    for _ in range(90):
        optimizer.step()
        scheduler.step()
        rates = {group["block"]: group["lr"] for group in optimizer.param_groups}
        worst = max(
            worst, *(max(r / rates["Norm"] / LR_MULT[b], LR_MULT[b] * rates["Norm"] / r) for b, r in rates.items())
        )
    assert (worst < 1.01) == (expected == KEEP)
    page = (ROOT / "docs" / "huggingface.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line)
    assert row.split("|")[2].strip().startswith("yes" if expected == KEEP else "no")


def test_frozen_parameters_are_left_out():
    """They need no name that the table knows, and leave no empty group."""
    model = tiny()
    model.strange = nn.Conv2d(3, 4, 2).requires_grad_(False)
    frozen = [model.tok_emb.weight, model.pos_emb.weight, model.blocks[0].attn.q_proj.weight]  # all of Emb, part of QK
    for p in frozen:
        p.requires_grad_(False)
    groups = param_groups(model, lr=0.1)
    assert [g["block"] for g in groups] == ["QK", "VO", "FFN", "Norm"]
    free = [id(p) for g in groups for p in g["params"]]
    assert sorted(free) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {id(p) for p in frozen}.isdisjoint(free)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model)
    torch.optim.SGD(groups).step()
    for old, p in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, p) != p.requires_grad
    assert param_groups(model.requires_grad_(False), lr=1.0) == []


# The table that a user sees


def test_the_table_of_a_split():
    model = tiny()
    model.tok_emb.weight.requires_grad_(False)
    rows = [line.split() for line in describe_blocks(model).splitlines()]
    assert rows[0] == ["block", "rate", "tensors", "parameters", "examples"]
    assert rows[1] == ["Emb", "10x", "1", "48", "pos_emb"]
    assert rows[2] == ["QK", "8x", "4", "192", "attn.q_proj,", "attn.k_proj"]
    assert rows[-1] == ["frozen", "-", "1", "104", "tok_emb"]
    with pytest.raises(KeyError, match="adapter"):
        describe_blocks([("adapter.weight", nn.Parameter(torch.zeros(1)))])


@pytest.fixture
def config_folder(tmp_path):
    """{family: folder with a config.json and nothing else}"""
    made = {"gpt2": transformers.GPT2Config(n_layer=1), "llama": transformers.LlamaConfig(num_hidden_layers=1)}
    for family, config in made.items():
        config.save_pretrained(tmp_path / family)
    return tmp_path


def test_the_command_prints_the_split_of_a_config(config_folder):
    rows = [line.split() for line in main([str(config_folder / "llama")]).splitlines()]
    assert rows[0] == ["LlamaForCausalLM"] and rows[2][:4] == ["Emb", "10x", "1", "131,072,000"]
    fused = str(config_folder / "gpt2")
    with pytest.raises(ValueError, match="fused_qkv"):
        main([fused])
    assert "QK       8x" in main([fused, "--fused_qkv=QK"])
    assert "Other" in main([fused, "--block_of.attn.c_attn=Other"])
    assert main(["--help"]).startswith("usage: python -m blockwise.blocks")


@pytest.mark.parametrize(
    "words, match",
    [
        ([], "expected one model"), (["a", "b"], "expected one model"), (["a", "--x"], "--x: expected --as="),
        (["a", "--unknown=y"], "unknown='y' is not a block type"), (["{folder}/none"], "{folder}/none: no model"),
        (["{folder}/broken"], "broken: no model can be built"),
    ],
)  # fmt: skip
def test_the_command_refuses(config_folder, words, match):
    (config_folder / "broken").mkdir()
    (config_folder / "broken" / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(ValueError, match=match.replace("{folder}", str(config_folder))):
        main([word.replace("{folder}", str(config_folder)) for word in words])


def test_the_command_leaves_with_one_line_and_status_2():
    words = [sys.executable, "-m", "blockwise.blocks", "--nothing"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: --nothing: expected --as=, --rates=, --split_qkv, --fused_qkv=, --unknown= or --block_of.END=\n"
    )


# transformers.Trainer


def test_the_ten_lines_for_trainer_run(tmp_path):
    """docs/huggingface.md's own lines on a tiny model, two steps; every rate falls by one factor."""
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    (snippet,) = [
        block for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/huggingface.md").read_text(), re.DOTALL)
        if "Trainer" in block
    ]  # fmt: skip
    for old, new in (
        (r"AutoModelForCausalLM\.from_pretrained\(.*?\)", "tiny"), ("out/trainer", str(tmp_path)),
        ("max_steps=1000", 'max_steps=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True'),
        ("num_warmup_steps=100", "num_warmup_steps=1"), ("num_training_steps=args.max_steps", "num_training_steps=4"),
    ):  # fmt: skip
        snippet, found = re.subn(old, new, snippet)
        assert found == 1, old
    config = transformers.LlamaConfig(**SHAPE)
    names = {
        "tiny": transformers.AutoModelForCausalLM.from_config(config),
        "dataset": [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 16,
    }
    before = names["tiny"].lm_head.weight.detach().clone()
    exec(snippet, names)
    assert names["trainer"].state.global_step == 2 and not torch.equal(before, names["tiny"].lm_head.weight)
    factor = 0.75  # of a cosine, a third of the way from 1 to 0
    rates = {group["block"]: group["lr"] for group in names["trainer"].optimizer.param_groups}
    assert rates == pytest.approx({block: 6e-4 * mult * factor for block, mult in LR_MULT.items()})
