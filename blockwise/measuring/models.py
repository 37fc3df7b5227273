"""Which models are measured: the checkpoints of a run, or one in Hugging Face's format."""

import json
from functools import partial
from pathlib import Path

from blockwise import UserError
from blockwise.archwarmup import layers_at, put_to_work
from blockwise.checkpoint import load_checkpoint, need_checkpoint, whole_checkpoints
from blockwise.huggingface import Pretrained, is_hugging_face
from blockwise.logger import warn


def models_of(config, build):
    """([(step, load), ...], the run's config): load() reads one model and returns it with its checkpoint.

    build: makes a model from its architecture, a dict of ModelConfig's fields. A model in Hugging Face's format has no
    checkpoint (None), counts as step 0, and comes with its block_size as the config.
    Raises UserError if there is no model, or no intact one.
    """
    return checkpoints_of(config, build) if config.init_from == "resume" else pretrained(config, build)


def checkpoints_of(config, build):
    newest = need_checkpoint(config.out_dir, warn)
    paths = [newest] if config.checkpoints == "newest" else whole_checkpoints(config.out_dir, warn)

    def load(path):
        saved = load_checkpoint(path)
        return from_checkpoint(build, saved), saved

    steps = [(int(path.stem.removeprefix("ckpt_")), partial(load, path)) for path in paths]
    return steps, json.loads(newest.with_suffix(".json").read_text())["config"]


def pretrained(config, build):
    if not is_hugging_face(config.init_from):
        raise UserError(f"init_from={config.init_from}: expected resume or hf:DIR_OR_ID")
    source = Pretrained(config.init_from)
    Path(config.out_dir).mkdir(parents=True, exist_ok=True)
    return [(0, lambda: (from_pretrained(build, source), None))], {"block_size": source.shape["block_size"]}


def from_checkpoint(build, saved):
    model = build(saved["model_config"])
    model.load_state_dict(saved["model"])
    # layers that an architecture warm-up has not activated yet are not measured
    put_to_work(model, layers_at(saved.get("layers", [[0, model.config.n_layer]]), saved["step"]))
    return model


def from_pretrained(build, source):
    model = build({**source.shape, "dropout": 0.0})
    model.load_state_dict(source.weights(model.state_dict()))
    return model
