"""Which models are measured: the checkpoints of a run, or one in Hugging Face's format."""

from functools import partial
from pathlib import Path

from blockwise import UserError
from blockwise.checkpoint import config_of, load_checkpoint, require_checkpoint, step_of, valid_checkpoints
from blockwise.data.identity import check_pretrained, check_tokenizer
from blockwise.huggingface.load import Pretrained
from blockwise.layer_warmup import active_layers_at
from blockwise.settings import is_hugging_face


def models_of(config, transformer):
    """([(step, load), ...], the run's config), where load(data) gives a model to measure on a data set, its checkpoint.

    load raises UserError for a data set of another tokenizer.
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

    def load(data):
        check_pretrained(source.folder, data, config.init_from)
        return transformer.from_pretrained(source), None

    return [(0, load)], {"block_size": source.shape["block_size"]}


def checkpoints_of(config, transformer):
    newest = require_checkpoint(config.out_dir)
    paths = [newest] if config.checkpoints == "newest" else valid_checkpoints(config.out_dir)

    def load(path, data):
        checkpoint = load_checkpoint(path)
        check_tokenizer(checkpoint["tokenizer"], data, path)
        model = transformer.from_checkpoint(checkpoint, ema=config.ema)
        # Layers that an architecture warm-up has locked take no part
        model.set_active_layers(active_layers_at(checkpoint["layers"], checkpoint["step"]))
        return model, checkpoint

    return [(step_of(path), partial(load, path)) for path in paths], config_of(newest)
