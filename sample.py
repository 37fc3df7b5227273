"""Write text with the newest checkpoint of a run.

python sample.py --out_dir=out/demo/blockwise --start="In the beginning" --num_samples=3
python sample.py --out_dir=out/demo/blockwise --start=FILE:prompt.txt --temperature=0.7 --top_p=0.9 --stop="Amen."
python sample.py --init_from=hf:DIR --start="In the beginning"       # a model in Hugging Face's format
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from blockwise import UserError, exit_on_user_error
from blockwise.keys import PATH, Keys, Range, as_path
from blockwise.settings import PRETRAINED, is_hugging_face
from configurator import configure


@dataclass
class SampleConfig(Keys):
    """The keys of sample.py. Names that nanoGPT has keep its meaning."""

    out_dir: Annotated[str, "folder of the run", PATH] = "out"
    init_from: Annotated[str, "resume: newest checkpoint in out_dir; or weights: hf:DIR_OR_ID, gpt2, ...", PATH] = (
        "resume"
    )
    ema: Annotated[bool, "sample from the moving average of the weights (train with --ema_decay)"] = False
    start: Annotated[str, "prompt, or FILE:path to read it; <|endoftext|> is GPT-2's end-of-text token"] = "\n"
    stop: Annotated[str, "text before which generation ends; it also ends at the end-of-text token"] = ""
    num_samples: Annotated[int, "number of texts", Range(1)] = 10
    max_new_tokens: Annotated[int, "length of each text, in tokens", Range(1)] = 500
    temperature: Annotated[float, "softmax temperature; 0: greedy", Range(0)] = 0.8
    top_k: Annotated[int | None, "number of most likely tokens to draw from; None: all", Range(1)] = 200
    top_p: Annotated[
        float, "probability of the most likely tokens to draw from, after top_k; 1: all", Range(0, 1, "(]")
    ] = 1.0
    bos: Annotated[
        bool | Literal["auto"],
        "the tokenizer's BOS token, if it has one, before the prompt (auto: for Hugging Face weights; texts "
        "of the data sets prepared here begin without it)",
    ] = "auto"
    seed: Annotated[int, "random seed", Range(0)] = 1337
    device: Annotated[str, "cpu, cuda, cuda:1, mps (auto: cuda if there, else cpu)"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], "precision, as in train.py"] = "auto"
    compile: Annotated[bool, "torch.compile"] = False

    def __post_init__(self):
        super().__post_init__()
        pretrained = is_hugging_face(self.init_from)
        self.check("init_from", self.init_from == "resume" or pretrained, " or ".join(("resume", *PRETRAINED)))
        self.check("ema", not (self.ema and pretrained), "False for Hugging Face weights, which have no moving average")
        for key in ("start", "stop"):
            if any("\ud800" <= char <= "\udfff" for char in getattr(self, key)):
                raise UserError(f"{key} is not UTF-8 text")


if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        config, _, _ = configure(SampleConfig, sys.argv[1:], __doc__)

import torch

from blockwise.checkpoint import load_checkpoint, require_checkpoint
from blockwise.data.text import read_text
from blockwise.distributed import auto_device, auto_dtype, find_device
from blockwise.hardware import autocast
from blockwise.huggingface.load import Pretrained
from blockwise.tokenizer import Tokenizer, json_in, read_tokenizer_json
from model import Transformer


def main(config):
    device = find_device(auto_device(config.device))
    model, tokenizer, n_ids, ends = (from_checkpoint if config.init_from == "resume" else from_pretrained)(config)
    model.to(device).eval()
    if config.compile:
        model.compile()

    start = read_text(as_path(config.start.removeprefix("FILE:"))) if config.start.startswith("FILE:") else config.start
    with_bos = config.init_from != "resume" if config.bos == "auto" else config.bos
    bos = tokenizer.bos if with_bos else []
    prompt = bos + tokenizer.encode_prompt(start)
    if not prompt:
        raise UserError("start is empty: expected at least one character")
    if max(prompt) >= model.config.vocab_size:
        raise UserError(f"the tokenizer gives token id {max(prompt)}, the model has {model.config.vocab_size} of them")
    dtype = getattr(torch, auto_dtype(config.dtype, device))
    generator = torch.Generator(device).manual_seed(config.seed)
    for _ in range(config.num_samples):
        tokens = torch.tensor([prompt], device=device)  # (1, T)
        with autocast(device, dtype):
            new = model.generate(
                tokens, config.max_new_tokens, config.temperature, config.top_k, generator, n_ids, config.top_p
            )
            ids = (token.item() for token in new)
            print(text_until(config.stop, ids, prompt[len(bos) :], tokenizer, ends))
        print("---------------")


def text_until(stop, ids, prompt, tokenizer, ends=()):
    """The prompt's text and that of the ids that follow it, up to the end-of-text token, one of `ends`, or `stop`."""
    new, length = [], len(tokenizer.decode(prompt))
    for i in ids:
        if i == tokenizer.end_of_text or i in ends:
            break
        new.append(i)
        if stop and (at := tokenizer.decode(prompt + new).find(stop, length)) >= 0:
            return tokenizer.decode(prompt + new)[:at]
    return tokenizer.decode(prompt + new)


def from_checkpoint(config):
    """Model, tokenizer, number of ids of text, and more ids that end one, of the newest checkpoint in a folder."""
    checkpoint = load_checkpoint(require_checkpoint(config.out_dir))
    model = Transformer.from_checkpoint(checkpoint, ema=config.ema)
    tokenizer = Tokenizer(checkpoint["tokenizer"])
    return model, tokenizer, tokenizer.vocab_size, set()


def from_pretrained(config):
    """The same of a folder in Hugging Face's format, or on its hub; an export may pad the vocabulary."""
    source = Pretrained(config.init_from)
    model = Transformer.from_pretrained(source)
    tokenizer = Tokenizer(read_tokenizer_json(json_in(source.folder), str(source.folder)))
    return model, tokenizer, min(tokenizer.vocab_size, source.text_ids()), source.ends()


if __name__ == "__main__":
    with exit_on_user_error():
        main(config)
