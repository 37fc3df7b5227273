"""A model of ours as a Hugging Face folder: config.json, model.safetensors, tokenizer.json."""

import json
import os
import re
import shutil
from pathlib import Path

import torch

from blockwise.huggingface.names import KEYS, PREFIX, family_of, hf_names, is_conv1d


def with_all_heads(state, config):
    """(state, config) with a key and a value head for every query head where Hugging Face's GPT-2 is to hold them.

    It has no grouped heads: each of ours is written once for every query head that reads it, which computes the same.
    """
    if family_of(config) != "gpt2" or config["n_kv_head"] == config["n_head"]:
        return state, config
    copies, width = config["n_head"] // config["n_kv_head"], config["n_embd"] // config["n_head"]
    state = dict(state)
    for name, x in state.items():
        if ".attn.k_proj." in name or ".attn.v_proj." in name:
            state[name] = x.unflatten(0, (-1, width)).repeat_interleave(copies, dim=0).flatten(0, 1)
    return state, {**config, "n_kv_head": config["n_head"]}


def to_hf_state_dict(state, config):
    """A state dict of ours under Hugging Face's names. Their GPT-2 always has biases: where ours has none, zeros."""
    state, config = with_all_heads(state, config)
    family, tensors = family_of(config), {}
    for name, our_names in hf_names(state, family).items():
        if config["tie_weights"] and name == "lm_head.weight":
            continue
        x = torch.cat([state[ours] for ours in our_names])
        x = (x.T if is_conv1d(name, x, family) else x).contiguous()
        name = name if name == "lm_head.weight" else PREFIX[family] + name
        tensors[name] = x
        if family == "gpt2" and not config["bias"] and re.match(r"transformer\.(h|ln_f)\.", name):
            tensors[name.removesuffix("weight") + "bias"] = torch.zeros(x.size(-1))
    return tensors


def to_hf_config(config):
    """config.json for a model of ours, from its ModelConfig as a dict."""
    family = family_of(config)
    hf_config = {"model_type": family, "dtype": "float32", "use_cache": True}
    hf_config |= {name: config[key] for key, name in KEYS[family].items()}
    if family == "gpt2":
        rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config["dropout"])
        return {"architectures": ["GPT2LMHeadModel"], **hf_config, **rates, "activation_function": "gelu_new"}
    return {
        "architectures": ["Qwen3ForCausalLM" if family == "qwen3" else "LlamaForCausalLM"], **hf_config,
        "head_dim": config["n_embd"] // config["n_head"], "hidden_act": "silu",
        "attention_bias": config["bias"], "mlp_bias": config["bias"], "attention_dropout": config["dropout"],
        "rope_theta": config["rope_theta"],  # read before transformers 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
    }  # fmt: skip


def write_folder(folder, state, config, tokenizer):
    """Write a model and its tokenizer as AutoModelForCausalLM and AutoTokenizer read them; folder: empty.

    state: a state dict; config: its ModelConfig as a dict; tokenizer: a blockwise.tokenizer.Tokenizer.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    text, end, end_id = with_end_of_text(tokenizer.to_json(), tokenizer.vocab_size, config["vocab_size"])
    # Null where there is none: left out, both would be ids of the family's own vocabulary
    ids = {"bos_token_id": None if end == "</s>" else end_id, "eos_token_id": end_id}
    padding = list(range(tokenizer.vocab_size, config["vocab_size"]))
    generation = ids | ({"suppress_tokens": padding} if padding else {})
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["block_size"],
        "clean_up_tokenization_spaces": False,
        **{key.removesuffix("_id"): end for key, value in ids.items() if value is not None},
    }  # fmt: skip
    save_file(to_hf_state_dict(state, config), folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in {
        "config": {**to_hf_config(config), **ids}, "generation_config": generation, "tokenizer_config": about
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # which comes readable by its owner only


def with_end_of_text(text, n_ids, rows):
    """(tokenizer.json, token that ends a text, its id), the last two None where there is none and no room for one.

    Evaluation harnesses ask for it. Where the tokenizer has none, it is the byte 0, or the first id of the padding; the
    ids of text stay what they are.
    """
    from tokenizers import Tokenizer

    content = json.loads(text)
    special = {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}
    for end in ("<|endoftext|>", "</s>"):
        if end in special:
            return text, end, special[end]
    model, zero = content["model"], "\u0100"  # the byte 0, as byte-level vocabularies spell it
    byte_level = (content["decoder"] or {}).get("type") == "ByteLevel"
    if model["type"] == "BPE" and byte_level and zero not in json.dumps(model["merges"], ensure_ascii=False):
        end, end_id = "\0", model["vocab"].pop(zero)
        model["vocab"][end] = end_id  # spelled as itself, so that the special token is the byte
    elif n_ids < rows:
        end, end_id = "<|endoftext|>", n_ids
    else:
        return text, None, None
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": end_id, "content": end, **plain, "special": True})
    made = json.dumps(content, ensure_ascii=False, indent=1)
    if Tokenizer.from_str(made).token_to_id(end) != end_id:  # a word of text, or the library numbers otherwise
        return text, None, None
    return made, end, end_id


def folder_is_free(folder):
    """Whether a folder can be written: it does not exist, or is empty."""
    folder = Path(folder)
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
