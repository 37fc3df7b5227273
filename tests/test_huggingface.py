"""Models from and to Hugging Face: their weights in our model, ours in theirs, tokenizers, and what is refused."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub
import pytest
import tiktoken
import tokenizers
import torch
from conftest import losses, metrics, out_dir, run
from helpers import prepare_here
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import blockwise.tokenizer
import export
import sample
from blockwise import UserError
from blockwise.data.writing import write_dataset
from blockwise.files import GPT2
from blockwise.huggingface.export import folder_is_free, write_folder
from blockwise.huggingface.load import Pretrained
from blockwise.settings import TrainConfig
from blockwise.tokenizer import BYTES, Tokenizer, byte_alphabet
from configurator import configure
from model import ModelConfig, Transformer

HF_GPT2 = dict(vocab_size=256, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
HF_LLAMA = dict(
    vocab_size=256, max_position_embeddings=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48,
)  # fmt: skip
BIAS = dict(attention_bias=True, mlp_bias=True)
ROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": 100.0})
THEIRS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**HF_GPT2)),
    "gpt2, untied": lambda: GPT2LMHeadModel(
        GPT2Config(**HF_GPT2, tie_word_embeddings=False, n_inner=40, layer_norm_epsilon=1e-2)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**HF_LLAMA)),
    "llama, tied, grouped": lambda: LlamaForCausalLM(
        LlamaConfig(**HF_LLAMA, **ROPE, tie_word_embeddings=True, num_key_value_heads=2, rms_norm_eps=1e-2)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**HF_LLAMA, head_dim=8, num_key_value_heads=2, rms_norm_eps=1e-2)),
    "llama, bias": lambda: LlamaForCausalLM(LlamaConfig(**HF_LLAMA, **BIAS, num_key_value_heads=1)),
}
OURS = {
    "gpt2": dict(model_type="gpt2", tie_weights=True, bias=True),
    "gpt2, no bias": dict(model_type="gpt2", tie_weights=True, bias=False),
    "gpt2, untied, no bias": dict(model_type="gpt2", tie_weights=False, bias=False),
    "gpt2, grouped": dict(model_type="gpt2", tie_weights=True, bias=True, n_kv_head=2),
    "gpt2, one head, no bias": dict(model_type="gpt2", tie_weights=True, bias=False, n_kv_head=1),
    "llama": dict(model_type="llama", tie_weights=False, bias=False),
    "llama, tied, grouped, bias": dict(model_type="llama", tie_weights=True, bias=True, n_kv_head=2),
    "llama, qk_norm": dict(model_type="llama", tie_weights=False, bias=False, qk_norm=True),
}
TEXT = "In the beginning it's  God's 123 émigré, naïve 日本語 🙂\n\n\tend  \x00 \x7f ½ don't WE'LL x   y\r\n "


def randomised(model):
    """Every parameter random, norms and biases too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape) + (p.dim() == 1))
    return model.eval()


def tokens(T=32):
    return torch.randint(256, (2, T), generator=torch.Generator().manual_seed(1))


def loaded(folder, block_size=None):
    """Our model with the weights in a folder."""
    source = Pretrained(f"hf:{folder}")
    config = ModelConfig(**source.shape, dropout=0.0)
    model = Transformer(replace(config, block_size=block_size or config.block_size))
    model.load_state_dict(source.weights(model.state_dict()))
    return model.eval()


def assert_same_logits(ours, theirs, x=None, atol=1e-5):
    x = tokens() if x is None else x
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{case of THEIRS: (the model, the folder that save_pretrained wrote)}"""
    made = {}
    for case, make in THEIRS.items():
        folder = tmp_path_factory.mktemp("theirs")
        model = randomised(make())
        model.save_pretrained(folder)
        made[case] = model, folder
    return made


@pytest.fixture
def folder(folders, tmp_path):
    """A GPT-2's folder to be changed."""
    return Path(shutil.copytree(folders["gpt2"][1], tmp_path / "theirs"))


def edit(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# Theirs in ours


@pytest.mark.parametrize("case", THEIRS)
def test_their_models_in_ours(folders, case):
    theirs, folder = folders[case]
    ours = loaded(folder)
    assert ours.config.tie_weights == theirs.config.tie_word_embeddings
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert_same_logits(ours, theirs)


def test_in_float64(folder):
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert_same_logits(loaded(folder).double(), theirs, atol=1e-10)


def test_shards(folders, tmp_path):
    theirs = folders["llama"][0]
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert_same_logits(loaded(tmp_path / "sharded"), theirs)
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    whole = index.read_text()
    for change, match in (
        ({"weight_map": {"lm_head.weight": "../x"}}, "weight_map"),
        ({"weight_map": {"lm_head.weight": "x"}}, "is missing"),
        ({}, "weight_map"),
    ):
        index.write_text(json.dumps(change))
        with pytest.raises(UserError, match=match):
            loaded(tmp_path / "sharded")
    first = json.loads(whole)["weight_map"]
    index.write_text(json.dumps({"weight_map": {**first, "more": next(iter(first.values()))}}))
    with pytest.raises(UserError, match="lacks the tensor more"):
        loaded(tmp_path / "sharded")


@pytest.mark.parametrize("case", ["llama", "llama, tied, grouped"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(tmp_path, dtype, case):
    """Rotary angles are computed, not stored: a model cast with .to(dtype) rounds its own, one that is loaded not."""
    randomised(THEIRS[case]()).to(dtype).save_pretrained(tmp_path / "half")
    ours = loaded(tmp_path / "half")
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same_logits(ours, AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32))


def test_files_of_old_versions(folders, folder):
    """The hub's GPT-2: no prefix, the causal mask as a tensor, the tied matrix twice, defaults left out."""

    def age(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()

    edit_tensors(folder, age)
    config = json.loads((folder / "config.json").read_text())
    for key in ("tie_word_embeddings", "n_inner", "dtype", "layer_norm_epsilon"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_logits(loaded(folder), folders["gpt2"][0])


def test_llama_settings_of_old_versions(folders, tmp_path):
    theirs, folder = folders["llama, tied, grouped"]
    folder = shutil.copytree(folder, tmp_path / "old")
    edit(folder, rope_parameters=None, rope_theta=100.0, rope_scaling=None)
    assert_same_logits(loaded(folder), theirs)


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_fewer_positions(folders, case):
    theirs, folder = folders[case]
    assert_same_logits(loaded(folder, block_size=8), theirs, tokens(8))


def without(name):
    return lambda tensors: tensors.pop(name)


def with_tensor(name, x):
    return lambda tensors: tensors.update({name: x})


BROKEN_TENSORS = {
    "lacks the tensor h.1.mlp.c_fc.bias": without("transformer.h.1.mlp.c_fc.bias"),
    "has a tensor that a gpt2 model lacks: transformer.h.2.x": with_tensor("transformer.h.2.x", torch.zeros(1)),
    r"wpe.weight is \[9, 32\], config.json says \[32, 32\]": with_tensor("transformer.wpe.weight", torch.zeros(9, 32)),
    r"c_attn.weight is \[96, 32\], config.json says \[32, 96\]": with_tensor(
        "transformer.h.0.attn.c_attn.weight", torch.zeros(96, 32)
    ),
    "ln_f.bias has NaN or inf, expected finite": with_tensor("transformer.ln_f.bias", torch.full((32,), torch.inf)),
    "has torch.int8, expected finite floating-point": with_tensor(
        "transformer.ln_f.weight", torch.ones(32, dtype=torch.int8)
    ),
    "they differ": with_tensor("lm_head.weight", torch.zeros(256, 32)),
}


@pytest.mark.parametrize("match", BROKEN_TENSORS)
def test_wrong_tensors_are_refused(folder, match):
    edit_tensors(folder, BROKEN_TENSORS[match])
    with pytest.raises(UserError, match=match):
        loaded(folder)


UNSUPPORTED = {
    "model_type=mistral, expected gpt2, llama or qwen3": ("gpt2", dict(model_type="mistral")),
    "model_type=bert": ("llama", dict(model_type="bert")),
    "model_type=None": ("llama", dict(model_type=None)),
    "activation_function=relu": ("gpt2", dict(activation_function="relu")),
    "activation_function=gelu,": ("gpt2", dict(activation_function="gelu")),
    "scale_attn_by_inverse_layer_idx=True": ("gpt2", dict(scale_attn_by_inverse_layer_idx=True)),
    "add_cross_attention": ("gpt2", dict(add_cross_attention=True)),
    "n_layer=two, expected a whole number": ("gpt2", dict(n_layer="two")),
    r"model_type=\['gpt2'\], expected": ("gpt2", dict(model_type=["gpt2"])),
    "model_type={}, expected": ("gpt2", dict(model_type={})),
    "layer_norm_epsilon=inf, expected a finite": ("gpt2", dict(layer_norm_epsilon=float("inf"))),
    "layer_norm_epsilon=nan": ("gpt2", dict(layer_norm_epsilon=float("nan"))),
    "layer_norm_epsilon=10000": ("gpt2", dict(layer_norm_epsilon=10**400)),
    "n_embd=100000.*at most": ("gpt2", dict(n_embd=10**400)),
    "lacks the tensor h.2.mlp.c_fc.weight": ("gpt2", dict(n_layer=10**6)),
    "lacks the tensor layers.2.mlp.up_proj.weight": ("llama", dict(num_hidden_layers=10**6)),
    r"wte.weight is \[256, 32\], config.json says \[4194304, 32\]": ("gpt2", dict(vocab_size=2**22)),
    r"embed_tokens.weight is \[256, 32\], config.json says \[256, 4194304\]": (
        "llama",
        dict(hidden_size=2**22, head_dim=None),
    ),
    r"wpe.weight is \[32, 32\], config.json says \[4194304, 32\]": ("gpt2", dict(n_positions=2**22)),
    r"c_fc.weight is \[32, 128\], config.json says \[4194304, 32\]": ("gpt2", dict(n_inner=2**22)),
    "max_position_embeddings=1000000000, expected": ("llama", dict(max_position_embeddings=10**9)),
    "n_layer=1000000000, expected": ("gpt2", dict(n_layer=10**9)),
    "3 heads .* do not divide": ("gpt2", dict(n_head=3)),
    r"4 heads \(3 for": ("llama", dict(num_key_value_heads=3)),
    "rope_theta=inf": ("llama", dict(rope_parameters={"rope_theta": float("inf")})),
    "rope_theta=10000": ("llama", dict(rope_parameters={"rope_theta": 10**400})),
    "n_head=None": ("gpt2", dict(n_head=None)),
    "layer_norm_epsilon=0": ("gpt2", dict(layer_norm_epsilon=0)),
    "tie_word_embeddings=yes": ("gpt2", dict(tie_word_embeddings="yes")),
    "hidden_act=gelu": ("llama", dict(hidden_act="gelu")),
    "only unscaled": ("llama", dict(rope_scaling={"type": "linear", "factor": 2.0})),
    "rope_parameters": ("llama", dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4})),
    "partial_rotary_factor": ("llama", dict(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5})),
    "rope_theta=-1": ("llama", dict(rope_parameters={"rope_theta": -1})),
    "attention_bias=True, mlp_bias=False": ("llama", dict(attention_bias=True)),
    "head_dim=16": ("llama", dict(head_dim=16)),
    "head_dim=128": ("qwen3", dict(head_dim=128)),
    "use_sliding_window": ("qwen3", dict(use_sliding_window=True)),
    "attn_logit_softcapping": ("llama", dict(attn_logit_softcapping=30.0)),
    "quantization_config": ("llama", dict(quantization_config={"bits": 4})),
}


@pytest.mark.parametrize("match", UNSUPPORTED)
def test_other_architectures_are_refused(folders, tmp_path, match):
    case, changes = UNSUPPORTED[match]
    folder = shutil.copytree(folders[case][1], tmp_path / "other")
    edit(folder, **changes)
    with pytest.raises(UserError, match=match):
        Pretrained(f"hf:{folder}")


def test_broken_folders_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        loaded(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors: expected"):
        loaded(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin, a pickle"):
        loaded(folder)
    for text, match in (("{", "is broken"), ("[1]", "is broken"), ("\xff" * 3, "is broken")):
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=match):
            loaded(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        loaded(folder)


# The hub


def test_the_hubs_names(folders, monkeypatch, tmp_path):
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        assert "config.json" in allow_patterns and not any("bin" in pattern for pattern in allow_patterns)
        return str(folders["gpt2"][1])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("gpt2", "hf:gpt2", "gpt2-xl", "hf:openai-community/gpt2"):
        assert Pretrained(name).shape["n_embd"] == 32
    assert asked == ["gpt2", "gpt2", "gpt2-xl", "openai-community/gpt2"]
    for name in ("hf:no/such/folder", "hf:./gpt2", "hf:/nowhere", "hf:a b"):
        with pytest.raises(UserError, match="there is no folder"):
            Pretrained(name)

    def unreachable(name, allow_patterns):
        raise huggingface_hub.errors.LocalEntryNotFoundError("a long\nstory")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"HF_HOME=DIR hf download gpt2, .*hf:DIR$"):
        Pretrained("gpt2")


def test_names_of_weights():
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "hf:x", "hf:a/b"):
        assert TrainConfig(init_from=name).init_from == name
        assert sample.SampleConfig(init_from=name).init_from == name
    for name in ("hf:", "gpt3", "gpt2-tiny", "hf", "GPT2"):
        for kind in (TrainConfig, sample.SampleConfig):
            with pytest.raises(UserError, match="init_from="):
                kind(init_from=name)
    with pytest.raises(UserError, match="did you mean gpt2-medium"):
        TrainConfig(init_from="gpt2-meduim")


# Ours in theirs


def exported(folder, description=BYTES, **options):
    """Write a random model of ours; returns it and its config."""
    shape = dict(
        vocab_size=256, block_size=32, n_layer=2, n_head=4, n_kv_head=4, n_embd=32, n_inner=48, dropout=0.1,
        rope_theta=100.0, norm_eps=1e-2,
    )  # fmt: skip
    config = ModelConfig(**{**shape, **OURS["gpt2"], **options})
    model = randomised(Transformer(config))
    Path(folder).mkdir(exist_ok=True)
    write_folder(folder, model.state_dict(), asdict(config), Tokenizer(description))
    return model, config


@pytest.mark.parametrize("case", OURS)
def test_our_models_in_theirs(tmp_path, case):
    ours, config = exported(tmp_path, **OURS[case])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_logits(ours, theirs)
    again = loaded(tmp_path)
    assert_same_logits(again, theirs)
    assert asdict(again.config) == asdict(replace(config, dropout=0.0, bias=again.config.bias)) or "gpt2" in case
    prompt = tokens(5)
    expected = torch.cat(list(ours.generate(prompt, 6, temperature=0)), dim=1)
    found = theirs.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(found[:, 5:], expected)


@pytest.fixture
def small_gpt2(monkeypatch):
    """A tokenizer in GPT-2's manner with few ranks, in place of the one that is fetched."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT, "the cat sat on that mat and ate " * 9], vocab_size=300, show_progress=False)
    byte_of = {char: i for i, char in enumerate(byte_alphabet())}
    ranks = {bytes(byte_of[char] for char in token): i for token, i in trained.get_vocab().items()}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    small = tiktoken.Encoding(
        "small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)}
    )
    monkeypatch.setattr(blockwise.tokenizer, "gpt2_ranks", lambda: small)
    return small


def read_back(folder, description):
    """Our tokenizer, and AutoTokenizer from a folder that holds it."""
    exported(folder, description, vocab_size=320)
    return Tokenizer(description), AutoTokenizer.from_pretrained(folder)


def assert_same_tokenizer(ours, theirs, texts):
    for text in texts:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids) == text


def test_tokenizer_bytes(tmp_path):
    ours, theirs = read_back(tmp_path, BYTES)
    assert_same_tokenizer(ours, theirs, [TEXT, "", "a", "Ā <|endoftext|> </s>", "".join(map(chr, range(0x300)))])
    assert len(theirs) == 256 and theirs("aé")["input_ids"] == [97, 0xC3, 0xA9] and theirs.eos_token_id == 0
    assert json.loads((tmp_path / "generation_config.json").read_text())["suppress_tokens"] == list(range(256, 320))


def test_tokenizer_gpt2(small_gpt2, tmp_path):
    ours, theirs = read_back(tmp_path, GPT2)
    assert_same_tokenizer(ours, theirs, [TEXT, "", " the", "\n\n \n the cat's mat", "x\xa0y\u3000z ½²٣"])
    assert max(ours.encode(TEXT)) > 256  # merges took place
    assert theirs.eos_token_id == small_gpt2.eot_token == theirs.bos_token_id
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == small_gpt2.eot_token


def test_ranks_that_no_merges_make_are_refused(monkeypatch, tmp_path):
    ranks = {bytes([i]): i for i in range(256)} | {b"abc": 256}
    odd = tiktoken.Encoding("odd", pat_str=r"\S+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 257})
    monkeypatch.setattr(blockwise.tokenizer, "gpt2_ranks", lambda: odd)
    with pytest.raises(UserError, match="follows from no merge"):
        exported(tmp_path, GPT2)


def test_tokenizer_chars(tmp_path):
    chars = sorted(set(TEXT))[::-1]
    ours, theirs = read_back(tmp_path, {"tokenizer": "chars", "vocab_size": len(chars), "chars": chars})
    assert_same_tokenizer(ours, theirs, [TEXT, "", "the", "\n"])
    assert theirs.eos_token_id == len(chars)  # the first of the padding
    with pytest.raises(Exception, match="vocabulary"):
        theirs("Ω")
    exported(tmp_path, ours.description, vocab_size=len(chars))
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token is None


def test_tokenizer_of_the_library(tmp_path):
    for special in (["</s>"], []):
        made = tokenizers.ByteLevelBPETokenizer()
        made.train_from_iterator([TEXT], vocab_size=290, special_tokens=special, show_progress=False)
        text = made._tokenizer.to_str()
        ours, theirs = read_back(tmp_path, {"tokenizer": "bpe:290", "vocab_size": made.get_vocab_size(), "json": text})
        assert_same_tokenizer(ours, theirs, [TEXT, "", "Ā"])
        assert len(theirs) == ours.vocab_size
        assert theirs.eos_token == (special or ["\0"])[0] == theirs.decode([theirs.eos_token_id])
        assert ((tmp_path / "tokenizer.json").read_text() == text) == bool(special)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "cat": 1, "</s>": 2}, unk_token="the"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    made.add_special_tokens(["</s>"])
    _, theirs = read_back(tmp_path, {"tokenizer": "mine", "vocab_size": 3, "json": made.to_str()})
    assert theirs("the cat")["input_ids"] == [0, 1] and theirs.eos_token_id == 2
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    _, theirs = read_back(tmp_path, {"tokenizer": "mine", "vocab_size": 3, "json": made.to_str()})
    assert theirs("abb")["input_ids"] == [2, 1] and theirs.eos_token_id == 3  # the first of the padding
    with pytest.raises(UserError, match=r"tokenizer\.json of mine is broken"):
        Tokenizer({"tokenizer": "mine", "vocab_size": 1, "json": "{}"})


# The commands


def shapeless(words):
    """A run's words without its architecture."""
    return tuple(w for w in words if not w.startswith(("--n_", "--block_size", "--model_type", "--bias")))


def export_to(folder, to):
    config, _, _ = configure(export.ExportConfig, [f"--out_dir={folder}", f"--to={to}"], "")
    export.main(config)


@pytest.mark.parametrize(
    "model",
    [("--vocab_size=300",), ("--n_kv_head=1", "--bias=False"), ("--model_type=llama", "--n_kv_head=1", "--bias=True")],
    ids=["gpt2, padded", "gpt2, one head", "llama"],
)
def test_an_export_has_the_runs_loss(small, tmp_path, capsys, model):
    """In a fresh folder, and in the run's, which stays as it is."""
    run(*small, *model)
    loss = pytest.approx(metrics(small)[8]["val/loss"], abs=1e-5)
    capsys.readouterr()
    export_to(out_dir(small), tmp_path / "hf")
    out, err = capsys.readouterr()
    assert err == "" and ("300 rows; ids from 256 on are padding" in out) == ("--vocab_size=300" in model)
    before = {p: p.read_bytes() for p in out_dir(small).rglob("*") if p.is_file()}
    fresh = (*shapeless(small), f"--out_dir={tmp_path / 'fresh'}")
    for words in (fresh, shapeless(small)):
        assert run(*words, f"--init_from=hf:{tmp_path / 'hf'}", "--eval_only=True") == 0
        assert float(capsys.readouterr().out.split("validation loss ")[1].split()[0]) == loss
    assert not out_dir(fresh).exists()
    assert {p: p.read_bytes() for p in out_dir(small).rglob("*") if p.is_file()} == before


def test_eval_only_on_a_resume_leaves_the_run_alone(finished, capsys):
    """Also rows after the checkpoint, which a run that goes on would cut; also past max_iters."""
    loss = metrics(finished)[8]["val/loss"]
    with open(out_dir(finished) / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "train/lo')
    before = {p: p.read_bytes() for p in out_dir(finished).iterdir()}
    for words in ((), ("--max_iters=2",)):
        assert run(*finished, "--init_from=resume", "--eval_only=True", *words) == 0
        assert f"validation loss {loss}" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in out_dir(finished).iterdir()} == before


def test_a_run_does_not_move_the_weights_that_it_starts_from_away(small, folders, tmp_path):
    """The config.json of a model would be taken for that of an old run."""
    shutil.copytree(folders["llama, tied, grouped"][1], tmp_path / "hf")
    before = {p: p.read_bytes() for p in (tmp_path / "hf").iterdir()}
    words = (*shapeless(small), f"--init_from=hf:{tmp_path / 'hf'}", f"--out_dir={tmp_path / 'out' / '..' / 'hf'}")
    with pytest.raises(UserError, match=r"out_dir=.*expected another folder than that of init_from=hf:"):
        run(*words)
    assert {p: p.read_bytes() for p in (tmp_path / "hf").iterdir()} == before
    assert run(*words, "--eval_only=True") == 0


def test_training_from_weights_and_resuming(small, folders, tmp_path, capsys):
    folder = folders["llama, tied, grouped"][1]
    words = (*shapeless(small), f"--init_from=hf:{folder}")
    straight = (*words, f"--out_dir={tmp_path / 'straight'}")
    assert run(*straight) == 0
    assert "starting from hf:" in capsys.readouterr().out
    rows = metrics(straight)
    assert list(rows) == list(range(9)) and rows[0]["lr/QK"] == 8 * rows[0]["lr/Norm"]
    config = json.loads((out_dir(straight) / "config.json").read_text())
    assert config["n_kv_head"] == 2 and config["block_size"] == 32 and config["vocab_size"] == 256
    assert config["rope_theta"] == 100.0 and config["tie_weights"] is True and config["dropout"] == 0.1
    assert json.loads((out_dir(straight) / "ckpt_00000008.json").read_text())["step"] == 8

    halves = [w for w in words if not w.startswith("--init_from")]
    run(*words, "--max_iters=4")
    run(*halves, "--init_from=resume")
    assert losses(small) == losses(straight)


def test_keys_that_the_weights_fix(small, folders):
    folder = folders["gpt2"][1]
    words = (*shapeless(small), f"--init_from=hf:{folder}")
    for word in (
        "--n_layer=3", "--n_embd=64", "--model_type=llama", "--bias=False", "--vocab_size=512", "--n_head=2",
        "--block_size=33", "--tie_weights=False", "--norm_eps=1e-4", "--n_inner=100",
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{word[2:].split('=')[0]}=.*its weights fix that"):
            run(*words, word)
    assert not (out_dir(small) / "metrics.jsonl").exists()
    same = ("--n_layer=2", "--bias=True", "--vocab_size=256", "--norm_eps=1e-5", "--n_inner=128", "--dropout=0.2")
    assert run(*words, *same, "--block_size=8", "--max_iters=1") == 0
    saved = torch.load(out_dir(small) / "ckpt_00000001.pt", weights_only=True)
    assert saved["model"]["pos_emb.weight"].shape == (8, 32) and saved["model_config"]["block_size"] == 8
    assert run(*words, "--dry_run") == 0


def test_a_vocabulary_that_the_data_exceeds(small, folders, tmp_path):
    description = {"tokenizer": "gpt2", "vocab_size": 257}
    write_dataset(tmp_path / "data" / "big", {"train": [256] * 99, "val": [1] * 99}, description, "made up")
    words = (*shapeless(small), f"--init_from=hf:{folders['gpt2'][1]}", f"--data_dir={tmp_path / 'data'}")
    with pytest.raises(UserError, match=r"data set big has 257 token ids, hf:.* only 256"):
        run(*words, "--dataset=big")


def test_bad_weights_leave_the_old_run_where_it_was(finished, folder):
    before = {p: p.read_bytes() for p in out_dir(finished).iterdir()}
    (folder / "model.safetensors").write_bytes(b"not this")
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        run(*shapeless(finished), f"--init_from=hf:{folder}")
    assert {p: p.read_bytes() for p in out_dir(finished).iterdir()} == before


def sampled(capsys, source, *words):
    words = (source, "--device=cpu", "--start=a", "--num_samples=1", "--max_new_tokens=100", *words)
    capsys.readouterr()
    sample.main(configure(sample.SampleConfig, words, "")[0])
    return capsys.readouterr().out


def test_sampling_needs_the_weights_own_tokenizer(folder, capsys):
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        sampled(capsys, f"--init_from=hf:{folder}")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a valid tokenizer\.json"):
        sampled(capsys, f"--init_from=hf:{folder}")
    many = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 1, "cat": 256}, unk_token="the"))
    many.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    many.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="the tokenizer gives token id 256, the model has 256"):
        sampled(capsys, f"--init_from=hf:{folder}", "--start=the cat")


def test_sampling_never_gives_the_padding(small, tmp_path, monkeypatch, capsys):
    """Of characters, whose export has an end-of-text token in it; the run's text and that of its export are one."""
    chars = "abcdefgh"
    description = {"tokenizer": "chars", "vocab_size": 8, "chars": chars}
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(8, (400,), generator=rng).tolist()
    write_dataset(tmp_path / "data" / "chars", {"train": ids, "val": ids}, description, "made up")
    run(*small, f"--data_dir={tmp_path / 'data'}", "--dataset=chars", "--max_iters=1", "--vocab_size=12")
    export_to(out_dir(small), tmp_path / "hf")
    ends = json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"]
    assert ends == 8

    found = sampled(capsys, f"--init_from=hf:{tmp_path / 'hf'}", "--temperature=9")
    assert found == sampled(capsys, f"--out_dir={out_dir(small)}", "--temperature=9")
    assert set(found) <= {*chars, "-", "\n"}
    for odd in (None, 5, ["x", {}], list(range(12))):  # of other hands
        (tmp_path / "hf" / "generation_config.json").write_text(json.dumps({"suppress_tokens": odd}))
        assert sampled(capsys, f"--init_from=hf:{tmp_path / 'hf'}", "--temperature=9")


def test_data_by_a_models_own_tokenizer(small, finished_run, tmp_path, monkeypatch):
    """Of an export, by data/text/prepare.py: the run's own ids again."""
    export_to(finished_run, tmp_path / "hf")
    (tmp_path / "mine.txt").write_text(TEXT * 20, encoding="utf-8", newline="")
    for path in (tmp_path / "hf", tmp_path / "hf" / "tokenizer.json"):
        words = (tmp_path / "mine.txt", "--name=mine", f"--data_dir={tmp_path}", f"--tokenizer={path}")
        prepare_here(monkeypatch, "text", *words)
        data = (tmp_path / "mine" / "train.bin").read_bytes() + (tmp_path / "mine" / "val.bin").read_bytes()
        assert data[::2] == (TEXT * 20).encode() + b"\n" * (not TEXT.endswith("\n"))
    fresh = (*shapeless(small), f"--data_dir={tmp_path}", "--dataset=mine", f"--out_dir={tmp_path / 'fresh'}")
    assert run(*fresh, f"--init_from=hf:{tmp_path / 'hf'}", "--eval_only=True", "--eval_iters=1") == 0


def test_export_refuses(finished_run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in out_dir="):
        export_to(tmp_path / "nothing", tmp_path / "hf")
    with pytest.raises(UserError, match="to is missing"):
        configure(export.ExportConfig, [], "")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for to in (tmp_path / "full", tmp_path / "full" / "mine"):
        with pytest.raises(UserError, match="is not an empty folder"):
            export_to(finished_run, to)
    with pytest.raises(UserError, match="could not be written"):
        export_to(finished_run, tmp_path / "full" / "mine" / "below")
    (tmp_path / "empty").mkdir()
    export_to(finished_run, tmp_path / "empty")
    export_to(finished_run, tmp_path / "a" / "b")
    assert not folder_is_free(tmp_path / "empty") and len(list((tmp_path / "a").iterdir())) == 1


@pytest.mark.parametrize("options", [dict(qk_norm=True), dict(model_type="llama", logit_softcap=5.0)])
def test_what_no_family_has_is_not_exported(tmp_path, options):
    name, value = list(options.items())[-1]
    with pytest.raises(UserError, match=f"{name}={value}"):
        exported(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_an_export_is_read_back(finished_run, tmp_path, monkeypatch):
    """What another writer would get wrong, a tensor, one that should be zero, the shape, the tokenizer; a full disk."""

    def wrong(change):
        def write(folder, *arguments):
            write_folder(folder, *arguments)
            change(folder)

        return write

    def add_one(tensor):
        return lambda folder: edit_tensors(folder, lambda tensors: tensors[tensor].add_(1))

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    for change, match in (
        (add_one("transformer.h.1.attn.c_attn.weight"), r"not written: .*blocks\.1\.attn\.q_proj\.weight differs"),
        (add_one("transformer.ln_f.bias"), r"not written: .*norm_f\.bias is not zero"),
        (lambda folder: edit(folder, n_layer=1), "not written: .*has a tensor that a gpt2 model lacks"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"not written: .*not a valid tokenizer\.json"),
        (full, "could not be written: .*No space left"),
    ):
        monkeypatch.setattr(export, "write_folder", wrong(change))
        with pytest.raises(UserError, match=f"hf {'is ' * ('not' in match.split()[0])}{match}"):
            export_to(finished_run, tmp_path / "hf")
        assert not list(tmp_path.iterdir())
