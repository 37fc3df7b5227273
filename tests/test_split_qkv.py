"""Fused QKV in two parameters: the layouts by what attention does with V, steps, saving, refusals."""

import copy

import pytest
import torch
import transformers
from conftest import ROOT
from torch import nn

from blockwise.blocks import block_type, blocks_of, param_groups
from blockwise.split_qkv import LAYOUTS, FusedQKV, fused_projections, merge_qkv, split_qkv

WIDE = dict(vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
ROWS = dict(WIDE, intermediate_size=24)
GQA = dict(ROWS, num_key_value_heads=2)
NO_ENDS = dict(bos_token_id=0, eos_token_id=0)
N_WIDE = dict(NO_ENDS, vocab_size=48, n_embd=16, n_layer=2, n_head=4, n_positions=32)
FALCON = dict(WIDE, num_kv_heads=2, bias=True)
# name of a test: (class, config)
MODELS = {
    "gpt2": ("GPT2LMHeadModel", N_WIDE),
    "openai": ("OpenAIGPTLMHeadModel", N_WIDE),
    "mpt": ("MptForCausalLM", dict(vocab_size=48, d_model=16, n_layers=2, n_heads=4, max_seq_len=32)),
    "bigcode, one K and V": ("GPTBigCodeForCausalLM", dict(N_WIDE, multi_query=True)),
    "bigcode, by head": ("GPTBigCodeForCausalLM", dict(N_WIDE, multi_query=False)),
    "bloom": ("BloomForCausalLM", dict(vocab_size=48, hidden_size=16, n_layer=2, n_head=4)),
    "falcon, grouped": ("FalconForCausalLM", dict(FALCON, new_decoder_architecture=True)),
    "falcon, one K and V": ("FalconForCausalLM", dict(FALCON, multi_query=True)),
    "falcon, by head": ("FalconForCausalLM", dict(FALCON, num_kv_heads=4, multi_query=False)),
    "persimmon": ("PersimmonForCausalLM", ROWS),
    "gpt_neox": ("GPTNeoXForCausalLM", ROWS),
    "gpt_neox_japanese": ("GPTNeoXJapaneseForCausalLM", WIDE),
    "codegen": ("CodeGenForCausalLM", dict(N_WIDE, rotary_dim=4)),
    "phi3": ("Phi3ForCausalLM", dict(GQA, pad_token_id=0)),
    "minimax": ("MiniMaxForCausalLM", dict(GQA, head_dim=4, num_local_experts=2, num_experts_per_tok=1)),
}  # fmt: skip


def made(name):
    cls, options = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, cls)._from_config(getattr(transformers, cls).config_class(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # biases too
    return (model if name == "minimax" else model.double()).eval()  # its experts know no float64


def loss_of(model):
    ids = torch.arange(24).view(2, 12) % 7
    return model(input_ids=ids, labels=ids)


def output_of_attention(model, name):
    """What the first fused attention hands to its output projection."""
    attention = model.get_submodule(name.rpartition(".")[0])
    if type(attention).__name__ == "MiniMaxLightningAttention":  # its activation and norm hide that it is linear in V
        attention.act_fn = attention.norm = nn.Identity()
    (out,) = (m for n, m in attention.named_children() if n in ("c_proj", "dense", "out_proj", "o_proj"))
    seen = []
    handle = out.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    loss_of(model)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_split_model_computes_the_same_and_its_attention_is_linear_in_v(name):
    fused = made(name)
    with pytest.raises(ValueError, match="Q, K and V in one matrix"):
        blocks_of(fused)
    model = split_qkv(copy.deepcopy(fused))
    assert split_qkv(model) is model and not list(fused_projections(model))
    expected, got = loss_of(fused), loss_of(model)
    expected.loss.backward()
    got.loss.backward()
    assert torch.equal(expected.logits, got.logits)
    module = next(n for n, m in model.named_modules() if hasattr(m, "parametrizations"))
    split, whole = model.get_submodule(module).parametrizations.weight, fused.get_submodule(module).weight
    assert torch.equal(split[0](split.original0.grad, split.original1.grad), whole.grad)
    assert split.original0.numel() + split.original1.numel() == whole.numel()

    table = {n: block for block, members in blocks_of(model).items() for n, _ in members}
    parts = {n: block for n, block in table.items() if n.startswith(module + ".")}
    assert set(parts.values()) == {"QK", "VO"} and all(block_type(n) == block for n, block in parts.items())

    before = output_of_attention(model, module)
    with torch.no_grad():
        for n, parameter in model.named_parameters():
            if n.startswith(module + ".") and table[n] == "VO":
                parameter.mul_(2)  # V and its bias: twice the output, if all of V is here and nothing else
    exact = 1e-5 if before.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(output_of_attention(model, module), 2 * before, rtol=exact, atol=1e-14)


@pytest.mark.parametrize("name", ["gpt2", "falcon, grouped", "codegen"])
def test_equal_rates_train_as_the_fused_model_and_merged_weights_load(name, tmp_path):
    fused = made(name)
    model = split_qkv(copy.deepcopy(fused))
    for trained in (fused, model):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
        for _ in range(10):
            optimizer.zero_grad()
            loss_of(trained).loss.backward()
            optimizer.step()
    assert torch.equal(loss_of(model).logits, loss_of(fused).logits)
    merged = merge_qkv(copy.deepcopy(model))
    assert {n: p.shape for n, p in merged.state_dict().items()} == {n: p.shape for n, p in fused.state_dict().items()}
    merged.save_pretrained(tmp_path)
    loaded = type(fused).from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(loss_of(loaded).logits, loss_of(model).logits)
    assert list(fused_projections(merged)) and not list(fused_projections(model))  # the copy alone was merged


def test_steps_equal_those_of_separate_matrices():
    """Ten AdamW steps at the paper's multipliers: Phi-3 split, and the LLaMA of the same shape, weights and rates."""
    phi = made("phi3")
    config = transformers.LlamaConfig(**dict(GQA, rms_norm_eps=phi.config.rms_norm_eps, pad_token_id=0))
    llama = transformers.LlamaForCausalLM(config).double().eval()
    state = {}
    for name, tensor in phi.state_dict().items():
        if "qkv_proj" in name:  # rows: 4 heads of Q, 2 of K, 2 of V, of width 4
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), tensor.split([16, 8, 8]), strict=True))
        elif "gate_up_proj" in name:
            parts = dict(zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True))
        else:
            parts = {"": tensor}
        for part, values in parts.items():
            state[name.replace("qkv_proj", part).replace("gate_up_proj", part)] = values.clone()
    llama.load_state_dict(state)
    split_qkv(phi)
    assert torch.allclose(loss_of(phi).logits, loss_of(llama).logits, rtol=1e-12)
    losses = {}
    for model in (phi, llama):
        optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1))
        for _ in range(10):
            optimizer.zero_grad()
            answer = loss_of(model)
            answer.loss.backward()
            optimizer.step()
            losses.setdefault(type(model), []).append(answer.loss.item())
    ours, separate = losses.values()
    assert ours == pytest.approx(separate, rel=1e-6) and separate[-1] < 0.8 * separate[0]


def test_an_unknown_layout_is_refused_before_anything_is_changed():
    model = made("gpt2")
    model.vision_tower = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(16, 48)})})  # Other as it is
    model.other = nn.ModuleDict({"self_attn": nn.ModuleDict({"qkv_proj": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})})})
    assert {path.split(".")[0] for path, _, _ in fused_projections(model)} == {"transformer"}
    model.extra = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(16, 48)})})
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=r"extra.attn.qkv: unknown layout of Q, K and V, ModuleDict.qkv: expected"):
        split_qkv(model)
    assert [name for name, _ in model.named_parameters()] == names


def test_a_matrix_that_two_layers_share_is_refused():
    model = made("gpt2")
    first, second = (layer.attn for layer in model.transformer.h)
    second.c_attn.weight = first.c_attn.weight
    with pytest.raises(ValueError, match=r"h\.1\.attn\.c_attn and transformer\.h\.0\.attn\.c_attn share a matrix"):
        split_qkv(model)
    second.c_attn = first.c_attn
    assert [len(members) for members in (blocks_of(split_qkv(model))[block] for block in ("QK", "VO"))] == [2, 6]


def test_an_attention_module_alone_splits_and_merges():
    attention = split_qkv(made("gpt2").transformer.h[0].attn)
    attention.c_attn.parametrizations.weight.original0.requires_grad_(False)
    assert merge_qkv(attention).c_attn.weight.requires_grad


@pytest.mark.parametrize("dim", [0, 1, None])
def test_other_parametrizations_of_a_fused_matrix_stay_refused(dim):
    """weight_norm names its two parts alike, but they are no QK and VO; of a matrix of its own they have its type."""
    model = made("gpt2")
    model.transformer.h = model.transformer.h[:1]
    projection = model.transformer.h[0].attn.c_attn
    nn.utils.parametrizations.weight_norm(projection, dim=dim)
    nn.utils.parametrizations.weight_norm(model.transformer.h[0].mlp.c_fc, dim=dim)
    model.attn = nn.ModuleDict({"q_proj": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4), dim=dim)})
    for trains in (True, False):
        projection.parametrizations.weight.original0.requires_grad_(trains)
        with pytest.raises(ValueError, match=r"c_attn.* Q, K and V in one matrix"):
            param_groups(model, lr=1.0)
    table = blocks_of(model, fused_qkv="Other")
    assert len(table["Other"]) == 3 and len(table["QK"]) == 3 and "VO" in table
    assert merge_qkv(model) is model and not isinstance(projection.parametrizations.weight[0], FusedQKV)


def test_nanogpts_attention_has_a_layout():
    """`q, k, v = self.c_attn(x).split(self.n_embd, dim=2)`, on a Linear."""

    class CausalSelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn = nn.Linear(4, 12)

    model = nn.ModuleDict({"attn": CausalSelfAttention()})
    q, k, v = model.attn.c_attn.weight.detach().clone().split(4)
    split = split_qkv(model).attn.c_attn.parametrizations.weight
    assert torch.equal(split.original0, torch.cat([q, k])) and torch.equal(split.original1, v)


def test_every_layout_has_a_test():
    tested = set()
    for name in MODELS:
        model = made(name)
        for path, _, _ in fused_projections(model):
            attention, _, child = path.rpartition(".")
            tested.add(f"{type(model.get_submodule(attention)).__name__}.{child}")
    others = {"CausalSelfAttention.c_attn", "Phi4MultimodalAttention.qkv_proj"}  # above; Phi-3's, as its source says
    assert tested | others == set(LAYOUTS) and (ROOT / "docs/models.md").exists()
