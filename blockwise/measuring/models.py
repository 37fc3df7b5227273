"""Which models are measured: checkpoints of a run."""

from functools import partial

from blockwise.checkpoint import config_of, load_checkpoint, require_checkpoint, step_of, valid_checkpoints
from blockwise.data.identity import check_tokenizer
from blockwise.layer_warmup import active_layers_at


def models_of(config, transformer):
    """([(step, load), ...], the run's config), where load(data) gives a model to measure on a data set, its checkpoint.

    transformer: model.Transformer. Raises UserError where there is none; load does for a data set of another tokenizer.
    """
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
