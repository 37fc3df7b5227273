"""Weights and shape of a Hugging Face model, from a folder or from the hub, for our model.

Numbers and tensors are mapped; the code that computes is ours.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import torch

from blockwise import UserError
from blockwise.huggingface.names import BUFFERS, DEFAULTS, FIXED, KEYS, MODULES, PREFIX, family_of, hf_names, is_conv1d

SUPPORTED = "expected gpt2, llama or qwen3"
# What is fetched of a model on the hub: never a pickle
PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", "generation_config.json", "tokenizer*.json")


class Pretrained:
    """A model in Hugging Face's format. shape: its architecture under our keys, without dropout.

    init_from: hf:DIR, or hf:ID or one of GPT-2's names for the hub. Raises UserError, here and in the methods, for
    what is missing or broken, and for an architecture that ours cannot represent.
    """

    def __init__(self, init_from):
        self.folder = find_folder(init_from)
        self.shape = read_shape(self.folder)
        self.family = family_of(self.shape)
        self.files = tensor_files(self.folder)
        self.stored = {name.removeprefix(PREFIX[self.family]): name for name in self.files}
        self._check_size()

    def _check_size(self):
        """Refuse a config.json whose sizes are not the tensors', before a model of its sizes is made."""
        shape = self.shape
        names = [("tok_emb", "vocab_size"), *([("pos_emb", "block_size")] if shape["model_type"] == "gpt2" else [])]
        layers = ((f"blocks.{i}.mlp.up_proj", "n_inner") for i in range(shape["n_layer"]))
        for name, rows in itertools.chain(names, layers):
            (theirs,) = hf_names([f"{name}.weight"], self.family)
            with open_safetensors(self.files[self._name_of(theirs)]) as file:
                found = file.get_slice(self._name_of(theirs)).get_shape()
            expected = [shape[rows], shape["n_embd"]]
            if sorted(found) != sorted(expected):
                raise UserError(f"{self.folder}: tensor {theirs} is {found}, config.json says {expected}")

    def _name_of(self, theirs):
        if theirs not in self.stored:
            raise UserError(f"{self.folder} lacks the tensor {theirs}, which its config.json asks for")
        return self.stored[theirs]

    def text_ids(self):
        """How many ids its generation_config.json leaves after those at the end that it never generates: padding."""
        path, rows = self.folder / "generation_config.json", self.shape["vocab_size"]
        suppressed = read_json(path).get("suppress_tokens") if path.is_file() else None
        while isinstance(suppressed, list) and rows - 1 in suppressed:
            rows -= 1
        return rows or self.shape["vocab_size"]

    def weights(self, like):
        """Its tensors as stored, as a state dict of our model; like: the model's own, for names and shapes.

        Fewer positions than the stored model has are its first ones.
        """
        family, tied = self.family, self.shape["tie_weights"]
        stored, state = dict(self.stored), {}
        for theirs, ours in hf_names(like, family).items():
            if tied and theirs == "lm_head.weight":
                continue
            x = self._read(self._name_of(theirs))
            del stored[theirs]
            rows = [self.shape["block_size"] if name == "pos_emb.weight" else len(like[name]) for name in ours]
            expected = [sum(rows), *like[ours[0]].shape[1:]]
            transposed = is_conv1d(theirs, x, family)
            expected = expected[::-1] if transposed else expected
            if list(x.shape) != expected:
                raise UserError(f"{self.folder}: tensor {theirs} is {list(x.shape)}, config.json says {expected}")
            pieces = (x.T if transposed else x).split(rows)
            state |= {name: piece[: len(like[name])].contiguous() for name, piece in zip(ours, pieces, strict=True)}
        if tied:
            state["lm_head.weight"] = state["tok_emb.weight"]
            again = stored.pop("lm_head.weight", None)
            if again and not torch.equal(self._read(again), state["tok_emb.weight"]):
                raise UserError(f"{self.folder}: config.json ties {again} to the embedding, but they differ")
        unexpected = [name for short, name in stored.items() if not BUFFERS.fullmatch(short)]
        if unexpected:
            more = f" and {len(unexpected) - 1} more" if unexpected[1:] else ""
            raise UserError(f"{self.folder} has a tensor that a {family} model lacks: {unexpected[0]}{more}")
        return state

    def _read(self, name):
        with open_safetensors(self.files[name]) as file:
            x = file.get_tensor(name)
        if not x.is_floating_point():
            raise UserError(f"{self.files[name]}: tensor {name} is {x.dtype}, expected floating-point numbers")
        return x


def find_folder(init_from):
    """The local folder of a model; one on the hub is downloaded, unless Hugging Face's cache has it."""
    name = init_from.removeprefix("hf:")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(f"init_from={init_from}: there is no folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except RepositoryNotFoundError:
        raise UserError(
            f"init_from={init_from}: there is no folder {name}, and no public model of that name; "
            "for one that asks for it, log in with: hf auth login"
        ) from None
    except Exception as error:
        raise UserError(
            f"init_from={init_from}: there is no folder {name}, and it could not be fetched ({type(error).__name__}): "
            f"where there is a network, run HF_HOME=DIR hf download {name}, bring DIR here and set HF_HOME to it; "
            "or give a folder, hf:DIR"
        ) from None


def read_json(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: expected a folder that save_pretrained wrote") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is broken: expected an object in braces")
    return found


def read_shape(folder):
    """The architecture in a folder's config.json, under our keys. Raises UserError for one that ours cannot be."""
    path = folder / "config.json"
    theirs = read_json(path)
    family = theirs.get("model_type")
    if not isinstance(family, str) or family not in MODULES:
        raise UserError(f"{path}: model_type={family}, {SUPPORTED}")
    for key, values in FIXED[family].items():
        if theirs.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key}={theirs[key]}, {' or '.join(map(str, values))} is supported")

    model_type = "llama" if family == "qwen3" else family
    shape = {"model_type": model_type, "qk_norm": family == "qwen3"}
    for key, name in KEYS[family].items():
        value = theirs.get(name)
        shape[key] = DEFAULTS[family].get(name) if value is None else value
    shape["n_kv_head"] = shape.get("n_kv_head") or shape["n_head"]
    if shape["n_inner"] is None and model_type == "gpt2" and type(shape["n_embd"]) is int:
        shape["n_inner"] = 4 * shape["n_embd"]
    for key, value in shape.items():
        name = KEYS[family].get(key, key)
        if key == "norm_eps":
            holds, expected = is_positive(value), "a finite number above 0"
        elif key == "tie_weights":
            holds, expected = type(value) is bool, "true or false"
        else:
            holds = key in ("model_type", "qk_norm") or (type(value) is int and 0 < value <= 2**22)
            expected = "a whole number above 0, at most 2**22"  # of positions, which no tensor of LLaMA's bounds
        if not holds:
            raise UserError(f"{path}: {name}={value}, expected {expected}")

    if shape["n_embd"] % shape["n_head"] or shape["n_head"] % shape["n_kv_head"]:
        raise UserError(
            f"{path}: {shape['n_head']} heads ({shape['n_kv_head']} for keys and values) do not divide a width of "
            f"{shape['n_embd']} evenly"
        )
    shape |= {"bias": True, "rope_theta": 10000.0} if model_type == "gpt2" else llama_shape(path, theirs, shape)
    return shape


def is_positive(value):
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def llama_shape(path, theirs, shape):
    """bias and rope_theta, after a look at what else a LLaMA may have."""
    biases = [bool(theirs.get(key)) for key in ("attention_bias", "mlp_bias")]
    if biases[0] != biases[1]:
        raise UserError(f"{path}: attention_bias={biases[0]}, mlp_bias={biases[1]}: only both or neither is supported")
    width = theirs.get("head_dim", 128 if shape["qk_norm"] else None)  # Qwen3's default
    if width not in (None, shape["n_embd"] / shape["n_head"]):
        raise UserError(f"{path}: head_dim={width}, only hidden_size / num_attention_heads is supported")
    rope = {"rope_theta": theirs.get("rope_theta", 10000.0)}
    for key in ("rope_scaling", "rope_parameters"):  # before transformers 5, and since
        part = theirs.get(key) or {}
        if not isinstance(part, dict) or part.get("rope_type", part.get("type", "default")) != "default":
            raise UserError(f"{path}: {key}={part}, only unscaled rotary positions are supported")
        rope |= part
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{path}: partial_rotary_factor={rope['partial_rotary_factor']}, only 1 is supported")
    if not is_positive(rope["rope_theta"]):
        raise UserError(f"{path}: rope_theta={rope['rope_theta']}, expected a finite number above 0")
    return {"bias": biases[0], "rope_theta": float(rope["rope_theta"])}


def tensor_files(folder):
    """{name: path of the file that holds it}, from model.safetensors or the index of several."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        with open_safetensors(whole) as file:
            return dict.fromkeys(file.keys(), whole)
    if not index.is_file():
        pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        instead = f", only {pickles[0]}, a pickle, which is not read" if pickles else ""
        raise UserError(f"{folder} has no model.safetensors{instead}: expected what save_pretrained writes")
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        raise UserError(f"{index} is broken: expected a weight_map of tensor names to file names")
    for name in sorted(set(files.values())):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, but {index.name} names it")
        with open_safetensors(folder / name) as file:
            lacking = {tensor for tensor, place in files.items() if place == name} - set(file.keys())
        if lacking:
            raise UserError(f"{folder / name} lacks the tensor {min(lacking)}, which {index.name} says is there")
    return {tensor: folder / name for tensor, name in files.items()}


def open_safetensors(path):
    from safetensors import SafetensorError, safe_open  # here: training from scratch needs no safetensors

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is broken: {error}") from None
