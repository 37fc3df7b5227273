"""What a tensor, a module and a key of ours is called in Hugging Face's GPT-2, LLaMA and Qwen3.

LLaMA's tensors differ in their names only, rotary layout included; with qk_norm it is Qwen3 there. GPT-2's linear
layers are Conv1D there, stored (in, out), with Q, K and V in one.
"""

import re

from blockwise import UserError

# Our modules -> Hugging Face's, inside a layer and outside. Q, K and V come in this order in GPT-2's one matrix.
MODULES = {
    "gpt2": {
        "tok_emb": "wte", "pos_emb": "wpe", "norm1": "ln_1",
        "attn.q_proj": "attn.c_attn", "attn.k_proj": "attn.c_attn", "attn.v_proj": "attn.c_attn",
        "attn.o_proj": "attn.c_proj", "norm2": "ln_2", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
        "norm_f": "ln_f", "lm_head": "lm_head",
    },
    "llama": {
        "tok_emb": "embed_tokens", "norm1": "input_layernorm",
        "attn.q_proj": "self_attn.q_proj", "attn.k_proj": "self_attn.k_proj", "attn.v_proj": "self_attn.v_proj",
        "attn.o_proj": "self_attn.o_proj", "norm2": "post_attention_layernorm",
        "mlp.gate_proj": "mlp.gate_proj", "mlp.up_proj": "mlp.up_proj", "mlp.down_proj": "mlp.down_proj",
        "norm_f": "norm", "lm_head": "lm_head",
    },
}  # fmt: skip
MODULES["qwen3"] = {**MODULES["llama"], "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}
LAYERS = {"gpt2": "h", "llama": "layers", "qwen3": "layers"}
# Before every name but lm_head; old files go without it
PREFIX = {"gpt2": "transformer.", "llama": "model.", "qwen3": "model."}
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # in old files

# Our key -> Hugging Face's in config.json
KEYS = {
    "gpt2": {
        "vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer", "n_head": "n_head",
        "n_embd": "n_embd", "n_inner": "n_inner", "norm_eps": "layer_norm_epsilon",
        "tie_weights": "tie_word_embeddings",
    },
    "llama": {
        "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads", "n_embd": "hidden_size",
        "n_inner": "intermediate_size", "norm_eps": "rms_norm_eps", "tie_weights": "tie_word_embeddings",
    },
}  # fmt: skip
KEYS["qwen3"] = KEYS["llama"]
# What a key means that config.json leaves out or sets to null
DEFAULTS = {
    "gpt2": {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    "llama": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False},
}
DEFAULTS["qwen3"] = DEFAULTS["llama"]
# Settings that change the computation, and the values that ours can compute; the first one is the default
FIXED = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,), "quantization_config": (None,),
    },
    "llama": {
        "hidden_act": ("silu", "swish"), "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
        "sliding_window": (None,), "quantization_config": (None,),
    },
}  # fmt: skip
FIXED["qwen3"] = {**FIXED["llama"], "use_sliding_window": (False,)}


def family_of(config):
    """Hugging Face's model_type for a ModelConfig of ours, as a dict. Raises UserError where it has none."""
    if config.get("logit_softcap"):
        raise UserError(f"logit_softcap={config['logit_softcap']}: no model of Hugging Face's is ours with it")
    if not config.get("qk_norm"):
        return config["model_type"]
    if config["model_type"] == "gpt2" or config["bias"]:
        raise UserError("qk_norm=True: Hugging Face's qwen3 is our llama with it and bias=False, and there is no other")
    return "qwen3"


def hf_names(names, family):
    """{Hugging Face's name, without its prefix: [our names]}: one of ours each, except for GPT-2's Q, K and V."""
    order = list(MODULES[family])
    our_names = {}
    for name in names:
        layer, module, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
        prefix = "" if layer is None else f"{LAYERS[family]}.{layer}."
        our_names.setdefault(f"{prefix}{MODULES[family][module]}.{kind}", []).append((order.index(module), name))
    return {hf_name: [name for _, name in sorted(numbered)] for hf_name, numbered in our_names.items()}


def is_conv1d(name, x, family):
    """Whether a tensor of Hugging Face's, by its name without prefix, is stored as (in, out)."""
    return family == "gpt2" and name.startswith("h.") and x.dim() == 2
