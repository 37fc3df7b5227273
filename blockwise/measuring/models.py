"""Which models are measured: the checkpoints of a run, or one in Hugging Face's format."""

from functools import partial
from pathlib import Path

from blockwise import UserError
from blockwise.checkpoint import config_of, load_checkpoint, require_checkpoint, step_of, valid_checkpoints
from blockwise.huggingface.load import Pretrained
from blockwise.huggingface.names import is_hugging_face


def models_of(config, transformer):
    """([(step, load), ...], the run's config), where load() gives a model and its checkpoint.

    transformer: model.Transformer. A model in Hugging Face's format is step 0 of no run, and its checkpoint is None.
    Raises UserError where there is none.
    """
    if config.init_from == "resume":
        return checkpoints_of(config, transformer)
    if not is_hugging_face(config.init_from):
        raise UserError(f"init_from={config.init_from}: expected resume or hf:DIR_OR_ID")
    if config.ema:
        raise UserError("ema=True: expected False for Hugging Face weights, which have no moving average")
    source = Pretrained(config.init_from)
    Path(config.out_dir).mkdir(parents=True, exist_ok=True)
    return [(0, lambda: (transformer.from_pretrained(source), None))], {"block_size": source.shape["block_size"]}


def checkpoints_of(config, transformer):
    newest = require_checkpoint(config.out_dir)
    paths = [newest] if config.checkpoints == "newest" else valid_checkpoints(config.out_dir)

    def load(path):
        checkpoint = load_checkpoint(path)
        return transformer.from_checkpoint(checkpoint, ema=config.ema), checkpoint

    return [(step_of(path), partial(load, path)) for path in paths], config_of(newest)
