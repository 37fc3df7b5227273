"""Write the newest checkpoint of a run as a Hugging Face folder.

    python export.py --out_dir=out/demo/blockwise --to=out/demo/hf

`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it, and so does --init_from=hf:DIR.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

from blockwise import UserError, exit_on_user_error
from configurator import configure


@dataclass
class ExportConfig:
    """The keys of export.py."""

    out_dir: Annotated[str, "folder of the run"] = "out"
    ema: Annotated[bool, "export the moving average of the weights (train with --ema_decay)"] = False
    to: Annotated[str | None, "folder to write, which must not exist or be empty"] = None

    def __post_init__(self):
        if not self.to:
            raise UserError("to is missing: expected --to=DIR, the folder to write")


if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        config, _, _ = configure(ExportConfig, sys.argv[1:], __doc__)

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from blockwise.checkpoint import load_checkpoint, require_checkpoint, weights_of
from blockwise.huggingface.export import folder_is_free, write_folder
from blockwise.tokenizer import Tokenizer


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
        write_folder(unfinished, weights_of(checkpoint, config.ema), checkpoint["model_config"], tokenizer)
        os.replace(unfinished, to)
    except (OSError, SafetensorError) as error:
        raise UserError(f"to={to} could not be written: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"wrote {path} to {to}: step {checkpoint['step']}, tokenizer {tokenizer.name}")
    if rows > tokenizer.vocab_size:
        print(f"the embedding keeps its {rows} rows; ids from {tokenizer.vocab_size} on are padding, never generated")


if __name__ == "__main__":
    with exit_on_user_error():
        main(config)
