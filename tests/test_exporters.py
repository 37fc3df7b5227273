"""The split as other trainers read it: their own rules, as documented, put every parameter into its block."""

import fnmatch
import json
import re
import sys
from functools import cache
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
import yaml

from blockwise.blocks import LR_MULT, blocks_of, main
from blockwise.exporters import EXPORTERS, export
from blockwise.split_qkv import split_qkv

# Names of the trainers' own models: torchtitan's Llama 3 and Megatron's GPT, wrapped
TITAN = """tok_embeddings.weight norm.weight lm_head.weight layers.{}.attention_norm.weight layers.{}.ffn_norm.weight
    layers.{}._checkpoint_wrapped_module.attention.qkv_linear.wq.weight layers.{}.attention.qkv_linear.wk.weight
    layers.{}.attention.qkv_linear.wv.weight layers.{}.attention.wo.weight layers.{}.feed_forward.w1.weight"""
MEGATRON = """embedding.word_embeddings.weight decoder.final_layernorm.weight output_layer.weight
    decoder.layers.{}.self_attention.linear_proj.weight decoder.layers.{}.self_attention.linear_qkv.layer_norm_weight
    decoder.layers.{}.self_attention.linear_qkv.weight decoder.layers.{}.mlp.linear_fc1.layer_norm_weight
    decoder.layers.{}.mlp.linear_fc1.weight decoder.layers.{}.mlp.linear_fc2.weight"""


def named(text, start=""):
    """(name, parameter) of twelve layers."""
    names = [start + name.format(i) for name in text.split() for i in (range(12) if "{}" in name else (0,))]
    return [(name, torch.nn.Parameter(torch.zeros(1))) for name in names]


@cache
def model_of(name):
    if name == "torchtitan":
        return named(TITAN)
    if name == "megatron":
        return named(MEGATRON, "module.module.")
    with torch.device("meta"):
        if name == "gpt2":
            return split_qkv(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=12)))
        if name == "mixtral":
            return transformers.MixtralForCausalLM(transformers.MixtralConfig(num_hidden_layers=2))
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=11))


def names_of(model):
    return [name for name, _ in (model.named_parameters() if hasattr(model, "named_parameters") else model)]


def torchtitan_rates(text, names, monkeypatch):
    """Its rule: the first pattern that `re.search` finds; a pattern without a parameter is an error."""
    module = ModuleType("torchtitan.components.optimizer")
    module.ParamGroupConfig = SimpleNamespace
    for part in ("torchtitan", "torchtitan.components"):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(text, scope := {})
    claimed = {}
    for group in scope["param_groups"]:
        matched = [name for name in names if name not in claimed and re.search(group.pattern, name)]
        assert (
            matched
            and group.optimizer_name == "AdamW"
            and set(group.optimizer_kwargs) == {"lr", "betas", "weight_decay"}
        )
        claimed |= dict.fromkeys(matched, group.optimizer_kwargs["lr"] / scope["LR"])
    return claimed


def nemo_rates(text, names, monkeypatch):
    """Its rule: the first override whose pattern `re.search` finds, else 1x."""
    optimizer = yaml.safe_load(text)["optimizer"]
    assert optimizer["_target_"] == "torch.optim.AdamW" and isinstance(optimizer["lr"], float)
    overrides = [(re.compile(o.pop("pattern")), o.pop("lr_mult"), o) for o in optimizer["param_group_overrides"]]
    assert all(rest == {} for _, _, rest in overrides)
    return {name: next((m for pattern, m, _ in overrides if pattern.search(name)), 1.0) for name in names}


def megatron_rates(text, names, monkeypatch):
    """Its rule: all keys of which a name `fnmatch`es are merged, and may not contradict each other."""
    for part in ("megatron", "megatron.core", "megatron.core.optimizer", "megatron.core.optimizer.optimizer_config",
                 "megatron.core.optimizer_param_scheduler"):  # fmt: skip
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    sys.modules["megatron.core.optimizer"].get_standard_config_overrides = lambda config: {}
    sys.modules["megatron.core.optimizer.optimizer_config"].ParamKey = lambda name: name
    sys.modules["megatron.core.optimizer_param_scheduler"].ParamGroupOverride = dict
    exec(text, scope := {"config": SimpleNamespace(lr=2e-3)})
    rates = {}
    for name in names:
        merged = [
            o["max_lr"] for globs, o in scope["config_overrides"].items() for g in globs if fnmatch.fnmatch(name, g)
        ]
        assert len(set(merged)) == 1, name
        rates[name] = merged[0] / 2e-3
    return rates


def json_rates(text, names, monkeypatch):
    return {name: group["lr_mult"] for group in json.loads(text).values() for name in group["parameters"]}


READ = {"json": json_rates, "torchtitan": torchtitan_rates, "nemo": nemo_rates, "megatron": megatron_rates}


@pytest.mark.parametrize("trainer", EXPORTERS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "torchtitan", "megatron"])
def test_every_parameter_gets_its_multiplier(name, trainer, monkeypatch):
    model = model_of(name)
    fused_qkv = "QK" if name == "megatron" else None  # Megatron's QKV is one matrix
    rates = READ[trainer](export(model, trainer, fused_qkv, lr_mult={"FFN": 2.5}), names_of(model), monkeypatch)
    expected = {**LR_MULT, "Other": 1.0, "FFN": 2.5}
    table = blocks_of(model, fused_qkv)
    assert rates == pytest.approx({n: expected[block] for block, members in table.items() for n, _ in members})
    assert len(set(rates.values())) >= 5


def test_names_that_no_pattern_tells_apart_are_refused():
    clash = named("layers.{}.mlp.gate.weight x.layers.0.mlp.gate.weight")
    block_of = {"x.layers.mlp.gate": "FFN"}
    assert "x.layers" in export(clash, "json", block_of=block_of)
    for trainer in ("torchtitan", "nemo", "megatron"):
        with pytest.raises(ValueError, match=r"x\.layers\.0\.mlp\.gate\.weight of FFN is also matched"):
            export(clash, trainer, block_of=block_of)
    with pytest.raises(KeyError, match="no block type 'emb'"):
        export(clash, "json", block_of=block_of, lr_mult={"emb": 2.0})


def test_the_command(tmp_path):
    transformers.GPT2Config(n_layer=1, architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds Q, K and V in one matrix.*split_qkv"):
        main([str(tmp_path), "--as=nemo"])
    assert "c_attn\\.parametrizations\\.weight\\.original1" in main([str(tmp_path), "--as=nemo", "--split_qkv"])
    assert re.search(r"^VO +4x +4 ", main([str(tmp_path), "--split_qkv"]), re.MULTILINE)
    with pytest.raises(ValueError, match="--as=x: expected one of json, torchtitan, nemo, megatron"):
        main([str(tmp_path), "--as=x", "--fused_qkv=QK"])


@pytest.mark.parametrize("trainer", EXPORTERS)
def test_rates_that_tune_found(trainer, tmp_path, monkeypatch):
    """Multipliers, base rate, betas and decay of rates.json; at one rate for all every multiplier is 1."""
    transformers.GPT2Config(n_layer=1, architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    file, names = tmp_path / "rates.json", [n for n in names_of(model_of("gpt2")) if ".h." not in n or ".h.0." in n]
    rates = {"learning_rate": 1.5e-3, "beta2": 0.987, "weight_decay": 0.0123, "lr_mult": {**LR_MULT, "QK": 2.5}}
    for found, qk in ((rates, 2.5), ({"learning_rate": 1.5e-3, "blockwise": False}, 1.0)):
        file.write_text(json.dumps({"answer": "", "rates": found}))
        text = main([str(tmp_path), f"--as={trainer}", "--split_qkv", f"--rates={file}"])
        multipliers = READ[trainer](text, names, monkeypatch)
        assert multipliers["transformer.h.0.attn.c_attn.parametrizations.weight.original0"] == pytest.approx(qk)
        assert multipliers["transformer.h.0.ln_1.weight"] == 1.0
        stated = {1.5e-3, found.get("beta2", 0.95), found.get("weight_decay", 0.1)}
        assert {float(x) for x in re.findall(r"\d+\.\d+(?:e-\d+)?", text)} >= (
            stated if trainer != "json" else {1.5e-3}
        )


@pytest.mark.parametrize(
    "text,words,message",
    [
        ('{"answer": "x"}', ["--as=nemo"], "expected the rates.json of tune.py"),
        ('{"rates": {"learning_rate": 1, "optimizer": "muon"}}', ["--as=nemo"], "rates of adamw, not of muon"),
        ('{"rates": {"learning_rate": NaN}}', ["--as=nemo"], "lr=nan: expected a finite number"),
        (
            '{"rates": {"learning_rate": 1, "lr_mult": {"Emb": "x"}}}',
            ["--as=json"],
            r"lr_mult\['Emb'\]='x': expected a finite",
        ),
        ('{"rates": {"learning_rate": 1, "lr_mult": {"emb": 2}}}', ["--as=json"], "no block type 'emb'"),
        ('{"rates": {"learning_rate": 1, "lr_mult": null}}', ["--as=json"], "expected the rates.json of tune.py"),
        (None, ["--as=nemo"], "rates.json: expected the rates.json of tune.py .*No such file"),
        (None, [], "--rates: expected --as="),
    ],
)
def test_rates_that_cannot_be_exported(text, words, message, tmp_path):
    transformers.GPT2Config(n_layer=1, architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    if text:
        (tmp_path / "rates.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        main([str(tmp_path), *words, "--split_qkv", f"--rates={tmp_path / 'rates.json'}"])


@pytest.mark.parametrize("adamw", [{"beta3": 0.9}, {"lr": "1e-3"}, {"weight_decay": float("nan")}, {"lr": -1.0}])
@pytest.mark.parametrize("trainer", EXPORTERS)
def test_settings_that_no_trainer_reads(trainer, adamw):
    with pytest.raises(ValueError, match=f"{next(iter(adamw))}=.*: expected"):
        export([("tok_emb.weight", torch.nn.Parameter(torch.ones(2, 2)))], trainer, **adamw)
