"""Write the newest checkpoint of a run as a Hugging Face folder.

    python export.py --out_dir=out/demo/blockwise --to=out/demo/hf

`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it, and so does --init_from=hf:DIR.
It is read back and compared with the checkpoint before it gets its name.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

from blockwise import UserError, exit_on_user_error, print0
from blockwise.keys import PATH, Keys
from configurator import configure


@dataclass
class ExportConfig(Keys):
    """The keys of export.py."""

    out_dir: Annotated[str, "folder of the run", PATH] = "out"
    ema: Annotated[bool, "export the moving average of the weights (train with --ema_decay)"] = False
    to: Annotated[str | None, "folder to write, which must not exist or be empty", PATH] = None

    def __post_init__(self):
        super().__post_init__()
        if not self.to:
            raise UserError("to is missing: expected --to=DIR, the folder to write")


if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        config, _, _ = configure(ExportConfig, sys.argv[1:], __doc__)

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from blockwise.checkpoint import load_checkpoint, require_checkpoint, weights_of
from blockwise.huggingface.export import folder_is_free, with_all_heads, write_folder
from blockwise.huggingface.load import Pretrained
from blockwise.tokenizer import Tokenizer, json_in, read_tokenizer_json
from model import ModelConfig, Transformer


def main(config):
    path = require_checkpoint(config.out_dir)
    to = Path(config.to)
    if not folder_is_free(to):
        raise UserError(f"to={to} exists and is not an empty folder: choose another, or remove it")
    checkpoint = load_checkpoint(path)
    tokenizer, rows = Tokenizer(checkpoint["tokenizer"]), checkpoint["model_config"]["vocab_size"]
    unfinished = to.absolute().with_name(f".{to.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        weights = weights_of(checkpoint, config.ema)
        write_folder(unfinished, weights, checkpoint["model_config"], tokenizer)
        read_back(unfinished, to, weights, checkpoint["model_config"])
        os.replace(unfinished, to)
    except (OSError, SafetensorError) as error:
        raise UserError(f"to={to} could not be written: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print0(f"wrote {path} to {to}: step {checkpoint['step']}, tokenizer {tokenizer.name}")
    if rows > tokenizer.vocab_size:
        print0(f"the embedding keeps its {rows} rows; ids from {tokenizer.vocab_size} on are padding, never generated")


def read_back(folder, to, state, config):
    """Load a folder as --init_from=hf: does. Raises UserError where a number is not what the checkpoint has."""
    try:
        Tokenizer(read_tokenizer_json(json_in(folder), str(folder)))
        source = Pretrained(f"hf:{folder}")
        with torch.device("meta"):
            like = Transformer(ModelConfig.of(source.shape)).state_dict()
        written = source.weights(like)
        for name, x in with_all_heads(state, config)[0].items():
            if not torch.equal(written.pop(name), x):
                raise UserError(f"{name} differs from the checkpoint's")
        for name, x in written.items():  # the biases that Hugging Face's GPT-2 must have
            if x.any():
                raise UserError(f"{name} is not zero, and the checkpoint has none")
    except UserError as error:
        raise UserError(f"to={to} is not written: verification of the written folder failed: {error}") from None


if __name__ == "__main__":
    with exit_on_user_error():
        main(config)
