"""The models against Hugging Face's in float64, and facts about them that need no reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import KINDS, batch, every_kind, make, make_config, randomised
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import model as modelling
from blockwise import losses
from blockwise.blocks import blocks_of
from blockwise.hardware import LiveBytes
from blockwise.losses import mean_cross_entropy, training_loss
from blockwise.sampling import sample
from model import KVCache, Transformer, rotate


def on_meta(**options):
    with torch.device("meta"):
        return Transformer(make_config(**options))


# Hugging Face

LLAMA_CASES = {
    "untied": dict(tie_word_embeddings=False),
    "tied": dict(tie_word_embeddings=True),
    "bias": dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "grouped": dict(tie_word_embeddings=False, num_key_value_heads=2),
    "one key-value head, bias, tied": dict(
        tie_word_embeddings=True, num_key_value_heads=1, attention_bias=True, mlp_bias=True
    ),
}


@pytest.fixture
def float64_llama(monkeypatch):
    """Hugging Face's LLaMA computes norms and the attention's softmax in float32, whatever the parameters are."""

    def norm(self, x):
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(F, "softmax", lambda x, dim, dtype=None: x.softmax(dim))


def from_gpt2(tensors):
    """Hugging Face's GPT-2 tensors, {name: tensor}, under our names: Conv1D transposed, the fused QKV split."""
    ours = {}
    leaves = {"attn.c_proj": "attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
    top = {"transformer.wte": "tok_emb", "transformer.wpe": "pos_emb", "transformer.ln_f": "norm_f"}
    for name, x in tensors.items():
        module, kind = name.rsplit(".", 1)
        if not module.startswith("transformer.h."):
            ours[f"{top.get(module, module)}.{kind}"] = x
            continue
        block, leaf = module.removeprefix("transformer.h.").split(".", 1)
        if leaf == "attn.c_attn":
            for part, piece in zip("qkv", x.chunk(3, dim=-1), strict=True):
                ours[f"blocks.{block}.attn.{part}_proj.{kind}"] = piece.T if piece.dim() == 2 else piece
        elif leaf in leaves:
            ours[f"blocks.{block}.{leaves[leaf]}.{kind}"] = x.T if x.dim() == 2 else x
        else:
            ours[f"blocks.{block}.{leaf.replace('ln_', 'norm')}.{kind}"] = x
    return ours


def from_llama(tensors):
    renamed = {
        "model.embed_tokens": "tok_emb", "model.layers": "blocks", "model.norm": "norm_f", "self_attn": "attn",
        "input_layernorm": "norm1", "post_attention_layernorm": "norm2",
    }  # fmt: skip
    ours = {}
    for name, x in tensors.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        ours[name] = x
    return ours


def assert_parity(theirs, translate, config):
    theirs = randomised(theirs)
    model = Transformer(config).double().eval()
    weights = translate(dict(theirs.named_parameters()))
    assert set(weights) == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])

    x, y = batch()
    logits = theirs(x).logits
    assert model(x).dtype == logits.dtype == torch.float64
    torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-10)

    expected = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    loss = model(x, y)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)

    expected.backward()
    loss.backward()
    gradients = translate({name: p.grad for name, p in theirs.named_parameters()})
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-4 or name.endswith("k_proj.bias"), name  # a key's bias shifts no softmax
        torch.testing.assert_close(p.grad, gradients[name], rtol=0, atol=1e-10, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_is_hugging_faces(tied):
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4, n_inner=48, layer_norm_epsilon=1e-3,
            tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
        )
    )  # fmt: skip
    assert_parity(theirs, from_gpt2, make_config(model_type="gpt2", tie_weights=tied, bias=True))


@pytest.mark.parametrize("case", LLAMA_CASES)
def test_llama_is_hugging_faces(float64_llama, case):
    options = LLAMA_CASES[case]
    bias = options.get("mlp_bias", False)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, max_position_embeddings=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            attn_implementation="eager", **options,
        )
    )  # fmt: skip
    heads, tied = options.get("num_key_value_heads", 4), options["tie_word_embeddings"]
    assert_parity(theirs, from_llama, make_config(model_type="llama", tie_weights=tied, bias=bias, n_kv_head=heads))


# Facts


@every_kind
def test_no_position_sees_a_later_one(kind):
    model, (x, _) = make(kind), batch(B=1)
    embedded = []
    model.tok_emb.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits = model(x)
    for t in range(x.size(1)):
        (gradient,) = torch.autograd.grad(logits[0, t].pow(2).sum(), embedded, retain_graph=True)  # (1, T, C)
        assert gradient[0].any(dim=1).tolist() == [True] * (t + 1) + [False] * (11 - t)


@every_kind
def test_initial_loss_is_that_of_guessing(kind):
    torch.manual_seed(0)
    model = Transformer(make_config(**KINDS[kind], vocab_size=512, n_embd=64))
    assert model(*batch(8, 16, 512)).item() == pytest.approx(math.log(512), abs=0.1)


@every_kind
def test_initial_weights(kind):
    torch.manual_seed(0)
    model = Transformer(make_config(**KINDS[kind], vocab_size=256, n_embd=128, n_inner=256, n_layer=3, bias=True))
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == (0.0 if "bias" in name else 1.0)).all(), name
        elif name == "pos_emb.weight":
            assert p.std().item() == pytest.approx(0.02, rel=0.1)
        else:
            narrow = "o_proj" in name or "down_proj" in name
            assert p.std().item() == pytest.approx(0.02 / math.sqrt(6) if narrow else 0.02, rel=0.04), name
            assert abs(p.mean().item()) < 1e-3


def test_initial_weights_follow_from_the_seed():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(Transformer(make_config(**KINDS["llama"])).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["tok_emb.weight"], models[2]["tok_emb.weight"])


def test_parameters_per_block():
    """Of the paper's 0.25B LLaMA; tests/test_project.py has the sizes of all its models."""
    shape = dict(n_embd=1024, n_layer=8, n_head=16, n_kv_head=16, n_inner=4096)
    model = on_meta(model_type="llama", vocab_size=50304, block_size=1024, tie_weights=False, **shape)
    counts = {block: sum(p.numel() for _, p in members) for block, members in blocks_of(model).items()}
    assert counts == dict(
        Emb=50304 * 1024, QK=8 * 2 * 1024**2, VO=8 * 2 * 1024**2, FFN=8 * 3 * 1024 * 4096, Norm=17 * 1024,
        Head=50304 * 1024,
    )  # fmt: skip
    assert sum(counts.values()) == 237_257_728


def test_parameters_of_gpt2_small():
    shape = dict(model_type="gpt2", block_size=1024, n_embd=768, n_layer=12, n_head=12, n_kv_head=12, n_inner=3072)
    original = on_meta(**shape, vocab_size=50257, bias=True, tie_weights=True)
    assert sum(p.numel() for p in original.parameters()) == 124_439_808


def test_losses_refuse_one_derivative_too_many():
    """Two in training, three in eval mode, where there are two."""
    model, (x, y) = make("llama"), batch(B=2, T=5)
    head = model.lm_head.weight
    with sdpa_kernel(SDPBackend.MATH):
        (first,) = torch.autograd.grad(model(x, y), head, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), head, retain_graph=True)
        assert second.abs().max() > 0
        with pytest.raises(RuntimeError, match="twice, not three times"):
            torch.autograd.grad(first.sum(), head, create_graph=True)
    with pytest.raises(RuntimeError, match="in eval mode twice"):
        torch.autograd.grad(model.train()(x, y), head, create_graph=True)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("options", [{}, dict(softcap=5.0, z_loss=1e-2)], ids=["plain", "softcap"])
def test_the_loss_in_pieces(dtype, tolerance, options):
    """Loss and gradients are those of all logits at once; of these a piece is in memory at a time."""
    torch.manual_seed(0)
    x, matrix, targets = torch.randn(100, 16), torch.randn(300, 16) / 4, torch.randint(300, (100,))
    counted = torch.arange(100) % 7 > 0
    results, peaks = [], []
    for rows in (0, 24):
        h, w = x.clone().requires_grad_(), matrix.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16), LiveBytes() as live:
            loss = (training_loss if rows else mean_cross_entropy)(h, w, targets, counted=counted, rows=rows, **options)
        loss.backward()
        results.append((loss.detach(), h.grad, w.grad))
        peaks.append(live.peak)
    for pieces, whole in zip(*results, strict=True):
        assert pieces.dtype == torch.float32
        assert (pieces - whole).norm() <= tolerance * whole.norm()
    assert peaks[1] < 0.6 * peaks[0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_precision_of_the_residual_stream(kind):
    """Only where autocast is on: in float32, for a measurement say, it stays as it is."""
    model, (tokens, targets) = make(kind, residual_dtype="bfloat16").float(), batch()
    seen = []
    for module in (*model.blocks, model.norm_f):
        module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(tokens, targets).backward()
        assert set(seen) == {(dtype, dtype)} and len(seen) == 3
        seen.clear()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@every_kind
def test_double_backward(kind):
    """A Hessian-vector product by two backward passes against central differences of the gradient."""
    model, (x, y) = make(kind, bias=True), batch(B=2, T=5)
    parameters = list(model.parameters())
    vector = [torch.randn_like(p) for p in parameters]
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(model(x, y), parameters, create_graph=True)
        product = torch.autograd.grad(gradient, parameters, grad_outputs=vector)
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, v in zip(parameters, vector, strict=True):
                    p.add_(v, alpha=sign * 1e-5 * (1 if sign == 1 else 2))
            sides.append(torch.autograd.grad(model(x, y), parameters))
    for p, h, plus, minus in zip(parameters, product, *sides, strict=True):
        assert h.dtype == torch.float64 and h.shape == p.shape
        torch.testing.assert_close(h, (plus - minus) / 2e-5, rtol=1e-5, atol=1e-5)


# Text


def without_cache(model, tokens, n):
    """What `generate` is to give at temperature 0: each token from the whole context, older half dropped when full."""
    size, new = model.config.block_size, []
    window = tokens[:, -size:]
    for _ in range(n):
        if window.size(1) > size:
            window = window[:, -(size // 2) :]
        new.append(model(window)[:, -1].argmax(dim=-1, keepdim=True))
        window = torch.cat((window, new[-1]), dim=1)
    return torch.cat(new, dim=1)


def generated(model, tokens, n, **options):
    return torch.cat(list(model.generate(tokens, n, **options)), dim=1)


@every_kind
@pytest.mark.parametrize("prompt, cures", [(1, {}), (11, dict(qk_norm=True, logit_softcap=2.0)), (16, {}), (23, {})])
def test_generation_with_a_cache_equals_without(kind, prompt, cures):
    model = make(kind, **cures)
    tokens = batch(B=2, T=prompt)[0]
    expected = without_cache(model, tokens, 40)
    assert len(expected.unique()) > 5
    assert torch.equal(generated(model, tokens, 40, temperature=0), expected)


@every_kind
@torch.no_grad()
def test_cached_logits(kind):
    model, (x, _) = make(kind), batch(B=2, T=12)
    cache = KVCache(model.config, 2, x.device, torch.float64)
    pieces = [model(x[:, :5], cache=cache)] + [model(x[:, t : t + 1], cache=cache) for t in range(5, 12)]
    assert cache.length == 12
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(x), rtol=0, atol=1e-10)


def test_the_cache_has_the_precision_of_autocast(monkeypatch):
    caches = []
    monkeypatch.setattr(modelling, "KVCache", lambda *args: caches.append(KVCache(*args)) or caches[-1])
    model, tokens = make("llama").float(), batch(B=1, T=3)[0]
    with torch.autocast("cpu", torch.bfloat16):
        generated(model, tokens, 2, temperature=0)
    generated(model, tokens, 2, temperature=0)
    assert [cache.keys.dtype for cache in caches] == [torch.bfloat16, torch.float32]


def test_grouped_queries_on_a_gpu():
    """K and V come with a head for each of Q's: the kernels that take fewer have neither float32 nor a mask."""

    def heads(device, dtype, masked=False):
        q, k, v = (torch.empty(2, heads, 5, 8, device=device, dtype=dtype) for heads in (4, 2, 2))
        mask = torch.ones(2, 1, 5, 5, dtype=torch.bool, device=device) if masked else None
        return [z.size(1) for z in modelling.for_fused_kernels(q, k, v, mask)]

    with FakeTensorMode():
        assert heads("cuda", torch.float32) == heads("cuda", torch.bfloat16, masked=True) == [4, 4]
        assert heads("cuda", torch.bfloat16) == heads("cpu", torch.float32, masked=True) == [2, 2]


def test_sampling_leaves_cudnn_out():
    """And only while the model computes: what the caller does between two tokens has its own choice."""
    model, allowed = make("llama"), []
    model.register_forward_hook(lambda *args: allowed.append(torch.backends.cuda.cudnn_sdp_enabled()))
    for _ in model.generate(batch(B=1, T=3)[0], 2):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
    assert allowed == [False, True, False, True]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_generation_in_the_smallest_contexts(block_size):
    model = make("llama", block_size=block_size)
    assert generated(model, batch(B=1, T=1)[0], 9, temperature=0).shape == (1, 9)


def test_ids_that_the_tokenizer_lacks_are_never_sampled():
    model, tokens = make("gpt2"), torch.zeros(50, 1, dtype=torch.int64)
    options = dict(temperature=5.0, generator=torch.Generator().manual_seed(0))
    assert generated(model, tokens, 5, **options).max() >= 7
    for more in (dict(), dict(temperature=0), dict(top_k=60), dict(top_k=3)):
        ids = generated(model, tokens, 5, n_ids=7, **{**options, **more})
        assert ids.min() >= 0 and ids.max() < 7


@pytest.mark.parametrize("n_ids", [None, 20])
def test_top_1_is_temperature_0(n_ids):
    model, tokens = make("llama"), batch(B=4, T=3)[0]
    greedy = generated(model, tokens, 20, temperature=0, n_ids=n_ids)
    assert torch.equal(generated(model, tokens, 20, temperature=2.0, top_k=1, n_ids=n_ids), greedy)


def test_top_k_keeps_the_k_likeliest():
    model, tokens = make("llama"), torch.zeros(300, 1, dtype=torch.int64)
    likeliest = model(tokens[:1])[0, -1].topk(3).indices
    ids = generated(model, tokens, 1, temperature=10.0, top_k=3, generator=torch.Generator().manual_seed(0))
    assert set(ids.flatten().tolist()) == set(likeliest.tolist())


@pytest.mark.parametrize("top_p, kept", [(1e-9, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.9999, 4), (1.0, 4)])
def test_top_p_keeps_the_fewest_ids_that_reach_it(top_p, kept):
    p = torch.tensor([0.05, 0.5, 0.15, 0.3]).double()
    generator = torch.Generator().manual_seed(0)
    ids = sample(p.log().expand(2000, 4), 1.0, None, generator, top_p)
    likeliest = p.argsort(descending=True)[:kept]
    assert set(ids.flatten().tolist()) == set(likeliest.tolist())
    share = p[likeliest[0]] / p[likeliest].sum()  # of what is left, renormalised
    assert abs((ids == likeliest[0]).double().mean() - share) < 0.06


def test_top_p_comes_after_top_k_and_temperature():
    logits, generator = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(500, 4), torch.Generator().manual_seed(0)
    assert set(sample(logits, 1.0, 2, generator, 0.6).flatten().tolist()) == {0}  # 0.5 of 0.8
    assert set(sample(logits, 10.0, None, generator, 0.6).flatten().tolist()) == {0, 1, 2}  # nearly uniform


def test_sampling_follows_the_generator_alone():
    model, tokens = make("llama"), batch(B=2, T=3)[0]
    draws = []
    for seed in (1, 1, 2):
        draws.append(generated(model, tokens, 20, generator=torch.Generator().manual_seed(seed)))
        torch.rand(3)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# Dropout, precision, cost


@every_kind
def test_dropout_acts_in_training_only(kind):
    model, (x, y) = make(kind, dropout=0.5), batch()
    same = make(kind)
    assert torch.equal(model(x, y), model(x, y))
    assert torch.equal(model(x), same(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(model(x), first)
    assert torch.equal(same.train()(x), same.eval()(x))


def test_dropout_acts_in_every_place(monkeypatch):
    """On the embeddings, inside attention, and on both residual branches of every layer."""
    model, (x, _) = make("llama", dropout=0.5), batch()
    seen = []
    dropout, attention = F.dropout, F.scaled_dot_product_attention

    def noting_dropout(x, p, training):
        seen.append(("branch", p if training else 0.0))
        return dropout(x, p, training)

    def noting_attention(*args, dropout_p, **options):
        seen.append(("attention", dropout_p))
        return attention(*args, dropout_p=dropout_p, **options)

    monkeypatch.setattr(F, "dropout", noting_dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", noting_attention)
    for rate in (0.0, 0.5):
        seen.clear()
        model.train(rate > 0)(x)
        assert sorted(seen) == [("attention", rate)] * 2 + [("branch", rate)] * 5


@every_kind
def test_flops_per_token(kind):
    model = make(kind)
    kv = 16 if kind == "grouped" else 32
    matrices = 2 if kind == "gpt2" else 3
    weights = 2 * (32 * (32 + kv + kv + 32) + matrices * 32 * 48) + 32 * 61  # the lookup of an embedding costs nothing
    assert model.flops_per_token() == 6 * weights + 12 * 2 * 32 * 16


# What keeps training stable: qk_norm, logit_softcap, z_loss

CURES = {
    "none": {},
    "softcap": dict(logit_softcap=2.0),
    "z_loss": dict(z_loss=0.1),
    "both": dict(logit_softcap=2.0, z_loss=0.1),
    "qk_norm": dict(qk_norm=True),
}


@every_kind
@pytest.mark.parametrize("cure", CURES)
@pytest.mark.parametrize("rows", [7, 35, 1000])
def test_gradients_of_what_is_trained(monkeypatch, kind, cure, rows):
    """Against plain autograd over whole logits. The loss that is returned is the cross-entropy alone."""
    monkeypatch.setattr(losses, "LOSS_ROWS", rows)
    plain, (x, y) = make(kind), batch()
    model = make(kind, **CURES[cure]).train()
    loss = model(x, y)
    z_loss, cap = CURES[cure].get("z_loss", 0.0), CURES[cure].get("logit_softcap")
    logits = model(x).flatten(0, 1)
    if cap:
        same = plain(x).flatten(0, 1)
        torch.testing.assert_close(logits, cap * torch.tanh(same / cap), rtol=0, atol=1e-12)
    expected = F.cross_entropy(logits, y.flatten())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    trained = expected + z_loss * logits.exp().sum(-1).log().square().mean()
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(found, torch.autograd.grad(trained, parameters), rtol=0, atol=1e-12)

    gpu_path = losses.cross_entropy(model(x).flatten(0, 1), y.flatten(), "mean", z_loss)
    torch.testing.assert_close(gpu_path, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(gpu_path, parameters), found, rtol=0, atol=1e-12)

    model.eval()  # evaluation and curvature see the cross-entropy
    plain_gradient = torch.autograd.grad(F.cross_entropy(model(x).flatten(0, 1), y.flatten()), parameters)
    torch.testing.assert_close(torch.autograd.grad(model(x, y), parameters), plain_gradient, rtol=0, atol=1e-12)


def test_logits_are_capped_in_float32_under_autocast():
    """Two logits near the cap, which bfloat16 would round to one."""
    logits = torch.tensor([[60.0, 62.0]], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        capped = losses.softcapped(logits, 15.0)
    torch.testing.assert_close(capped, 15 * torch.tanh(logits.float() / 15), rtol=0, atol=0)
    assert capped[0, 0] < capped[0, 1]


@every_kind
def test_qk_norm_by_hand(kind):
    """Attention of one layer from its definition: each head's queries and keys have RMS 1 before gain and rotation."""
    model = make(kind, qk_norm=True, n_layer=1, norm_eps=1e-9)
    attn, C = model.blocks[0].attn, model.config
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    heads = []
    for h in range(4):
        group = h // (4 // C.n_kv_head)
        q, k, v = (
            x @ linear.weight[8 * i : 8 * i + 8].T
            for linear, i in ((attn.q_proj, h), (attn.k_proj, group), (attn.v_proj, group))
        )
        q = attn.q_norm.weight * q / q.square().mean(-1, keepdim=True).sqrt()
        k = attn.k_norm.weight * k / k.square().mean(-1, keepdim=True).sqrt()
        if kind != "gpt2":
            q, k = (rotate(z, model.cos[:5], model.sin[:5]) for z in (q, k))
        logits = (q @ k.transpose(1, 2) / math.sqrt(8)).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(logits.softmax(-1) @ v)
    rotary = None if kind == "gpt2" else (model.cos[:5], model.sin[:5])
    expected = torch.cat(heads, dim=-1) @ attn.o_proj.weight.T
    torch.testing.assert_close(attn(x, rotary), expected, rtol=0, atol=1e-6)


def test_gains_of_qk_norm_are_norms():
    members = dict(blocks_of(make("llama", qk_norm=True))["Norm"])
    gains = {f"blocks.{layer}.attn.{name}_norm.weight" for layer in (0, 1) for name in "qk"}
    assert {name for name in members if "attn" in name} == gains
