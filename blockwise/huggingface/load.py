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
        self.stored_name = {name.removeprefix(PREFIX[self.family]): name for name in self.files}
        self._check_size()

    def _check_size(self):
        """Refuse a config.json whose sizes are not the tensors', before a model of its sizes is made."""
        modules = [("tok_emb", "vocab_size"), *([("pos_emb", "block_size")] if self.family == "gpt2" else [])]
        layers = ((f"blocks.{i}.mlp.up_proj", "n_inner") for i in range(self.shape["n_layer"]))
        for module, rows in itertools.chain(modules, layers):
            (name,) = hf_names([f"{module}.weight"], self.family)
            with self._file_of(name) as file:
                stored = file.get_slice(self.stored_name[name]).get_shape()
            expected = [self.shape[rows], self.shape["n_embd"]]
            if sorted(stored) != sorted(expected):
                raise UserError(f"{self.folder}: tensor {name} is {stored}, config.json says {expected}")

    def ends(self):
        """The ids at which its generation_config.json says that generation ends; of a chat model often several."""
        path = self.folder / "generation_config.json"
        ends = read_json(path).get("eos_token_id") if path.is_file() else None
        return {i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)}

    def text_ids(self):
        """Number of ids before the padding, which are those at the end that generation_config.json suppresses."""
        path, rows = self.folder / "generation_config.json", self.shape["vocab_size"]
        suppressed = read_json(path).get("suppress_tokens") if path.is_file() else None
        while isinstance(suppressed, list) and rows - 1 in suppressed:
            rows -= 1
        return rows or self.shape["vocab_size"]

    def weights(self, like):
        """Its tensors as stored, as a state dict of our model; like: the model's own, for names and shapes.

        A model of fewer positions than are stored gets the first ones.
        """
        family, tied = self.family, self.shape["tie_weights"]
        unread, state = dict(self.stored_name), {}
        for name, our_names in hf_names(like, family).items():
            if tied and name == "lm_head.weight":
                continue
            x = self._read(name)
            del unread[name]
            rows = [self.shape["block_size"] if ours == "pos_emb.weight" else len(like[ours]) for ours in our_names]
            expected = [sum(rows), *like[our_names[0]].shape[1:]]
            transposed = is_conv1d(name, x, family)
            if list(x.shape) != (expected := expected[::-1] if transposed else expected):
                raise UserError(f"{self.folder}: tensor {name} is {list(x.shape)}, config.json says {expected}")
            for ours, piece in zip(our_names, (x.T if transposed else x).split(rows), strict=True):
                state[ours] = piece[: len(like[ours])].contiguous()
        if tied:
            state["lm_head.weight"] = state["tok_emb.weight"]
            if unread.pop("lm_head.weight", None) and not torch.equal(
                self._read("lm_head.weight"), state["lm_head.weight"]
            ):
                raise UserError(f"{self.folder}: config.json ties lm_head.weight to the embedding, but they differ")
        if unexpected := [name for short, name in unread.items() if not BUFFERS.fullmatch(short)]:
            more = f" and {len(unexpected) - 1} more" if unexpected[1:] else ""
            raise UserError(f"{self.folder} has a tensor that a {family} model lacks: {unexpected[0]}{more}")
        return state

    def _file_of(self, name):
        if name not in self.stored_name:
            raise UserError(f"{self.folder} lacks the tensor {name}, which its config.json asks for")
        return open_safetensors(self.files[self.stored_name[name]])

    def _read(self, name):
        with self._file_of(name) as file:
            x = file.get_tensor(self.stored_name[name])
        problem = "NaN or inf" if x.is_floating_point() else x.dtype
        if not x.is_floating_point() or not x.isfinite().all():
            raise UserError(f"{self.folder}: tensor {name} has {problem}, expected finite floating-point numbers")
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
        problem = "no public model of that name; for one that asks for it, log in with: hf auth login"
    except Exception as error:
        problem = (
            f"it could not be fetched ({type(error).__name__}): where there is a network, run HF_HOME=DIR hf download "
            f"{name}, bring DIR here and set HF_HOME to it; or give a folder, hf:DIR"
        )
    raise UserError(f"init_from={init_from}: there is no folder {name}, and {problem}")


def read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: expected a folder that save_pretrained wrote") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is broken: expected an object in braces")
    return content


def read_shape(folder):
    """The architecture in a folder's config.json, under our keys. Raises UserError for one that ours cannot be."""
    path = folder / "config.json"
    config = read_json(path)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in MODULES:
        raise UserError(f"{path}: model_type={family}, {SUPPORTED}")
    for key, values in FIXED[family].items():
        if config.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key}={config[key]}, {' or '.join(map(str, values))} is supported")

    shape = {}
    for key, name in KEYS[family].items():
        value = config.get(name)
        shape[key] = DEFAULTS[family].get(name) if value is None else value
    shape["n_kv_head"] = shape.get("n_kv_head") or shape["n_head"]
    if shape["n_inner"] is None and family == "gpt2" and type(shape["n_embd"]) is int:
        shape["n_inner"] = 4 * shape["n_embd"]
    for key, value in shape.items():
        if key == "norm_eps":
            holds, expected = is_positive(value), "a finite number above 0"
        elif key == "tie_weights":
            holds, expected = type(value) is bool, "true or false"
        else:  # positions too, which no tensor of LLaMA's bounds
            holds, expected = type(value) is int and 0 < value <= 2**22, "a whole number above 0, at most 2**22"
        if not holds:
            raise UserError(f"{path}: {KEYS[family].get(key, key)}={value}, expected {expected}")
    n_head, n_kv_head, n_embd = (shape[key] for key in ("n_head", "n_kv_head", "n_embd"))
    if n_embd % n_head or n_head % n_kv_head:
        heads = f"{n_head} heads ({n_kv_head} for keys and values)"
        raise UserError(f"{path}: {heads} do not divide a width of {n_embd} evenly")
    if family == "gpt2":
        return shape | {"model_type": "gpt2", "qk_norm": False, "bias": True, "rope_theta": 10000.0}
    shape |= {"model_type": "llama", "qk_norm": family == "qwen3"}
    return shape | llama_shape(path, config, shape)


def is_positive(value):
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def llama_shape(path, config, shape):
    """bias and rope_theta. Raises UserError for what ours lacks of the rest that a LLaMA may have."""
    biases = [bool(config.get(key)) for key in ("attention_bias", "mlp_bias")]
    if biases[0] != biases[1]:
        raise UserError(f"{path}: attention_bias={biases[0]}, mlp_bias={biases[1]}: only both or neither is supported")
    width = config.get("head_dim", 128 if shape["qk_norm"] else None)  # Qwen3's default
    if width not in (None, shape["n_embd"] / shape["n_head"]):
        raise UserError(f"{path}: head_dim={width}, only hidden_size / num_attention_heads is supported")
    rope = {"rope_theta": config.get("rope_theta", 10000.0)}
    for key in ("rope_scaling", "rope_parameters"):  # before transformers 5, and since
        part = config.get(key) or {}
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
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        with open_safetensors(single) as file:
            return dict.fromkeys(file.keys(), single)
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
