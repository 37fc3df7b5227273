"""The identity of a run: the settings and the data by which two runs are the same, whichever study asks for them."""

import hashlib
import json
from functools import cache
from pathlib import Path

from blockwise.files import sha256
from blockwise.settings import AUTO_MULT, TrainConfig, given_only, mixture_shares

# What may differ between two runs that compute the same; multipliers and floor are in the resolved config
NOT_IDENTITY = (
    "out_dir", "init_from", "wandb_log", "wandb_project", "wandb_run_name", "log_interval", "profile", "blockwise",
    "min_lr_ratio", "activation_checkpointing", "checkpoint_format",
)  # fmt: skip
# The keys of the first studies, which count at every value. This list is closed: a key that joins the project counts
# only away from its default, with which a run computes what it did before, so that earlier runs are found again.
FIRST_KEYS = (
    "model_type", "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "block_size", "vocab_size", "dropout", "bias",
    "rope_theta", "norm_eps", "tie_weights", "qk_norm", "logit_softcap", "dataset", "data_dir", "doc_mask",
    "batch_size", "gradient_accumulation_steps", "optimizer", "learning_rate", "lr_mult", *AUTO_MULT, "weight_decay",
    "wd_mult", "beta1", "beta2", "ema_decay", "grad_clip", "arch_warmup", "arch_warmup_start", "arch_warmup_groups",
    "arch_warmup_interval", "qk_clip", "z_loss", "max_iters", "schedule", "wsd_decay", "wsd_boost", "decay_lr",
    "warmup_iters", "warmup_scaled", "lr_decay_iters", "min_lr", "min_lr_scaled", "eval_interval", "eval_iters",
    "eval_only", "always_save_checkpoint", "keep_checkpoints", "sharpness_interval", "curvature_interval",
    "curvature_hvps", "curvature_method", "curvature_exclude", "curvature_batch_size", "curvature_micro_batch",
    "curvature_precision", "device", "dtype", "compile", "parallel", "backend", "seed", "nan_policy", "deterministic",
)  # fmt: skip


def run_name(config):
    """Name of a run's folder, such as lr0.004-seed1-165cd3233ce9: the end is a hash of the run's identity."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]
    return f"lr{config.learning_rate:g}-seed{config.seed}-{digest}"


def identity(config):
    """{key: resolved value} of the keys that count in a TrainConfig, and the content of its data."""
    left_out = NOT_IDENTITY if config.lr_mult == "auto" else NOT_IDENTITY + AUTO_MULT
    resolved, counting = vars(config.resolved()), {}
    for key, default in defaults(TrainConfig).items():
        follows = getattr(config, key) is None  # from other keys, which count
        changed = not follows and given_only(resolved[key]) != given_only(default)
        if key not in left_out and (key in FIRST_KEYS or changed):
            counting[key] = given_only(resolved[key])
    # data_dir is the same wherever the data lie: it counted in earlier runs
    return counting | {"data_dir": TrainConfig.data_dir, "data": fingerprint(config.data_dir, config.dataset)}


@cache
def defaults(cls):
    return vars(cls())


@cache
def fingerprint(data_dir, dataset):
    """Hashes of a data set's splits, by its meta.json or else by its files; None: it is not there."""
    names = mixture_shares(dataset)
    if dataset not in names:
        found = {name: fingerprint(data_dir, name) for name in names}
        return found if all(found.values()) else None
    folder = Path(data_dir) / dataset
    try:
        splits = json.loads((folder / "meta.json").read_text())["splits"]
        return {split: splits[split]["sha256"] for split in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError):
        files = {split: folder / f"{split}.bin" for split in ("train", "val")}
        return {split: sha256(p) for split, p in files.items()} if all(p.is_file() for p in files.values()) else None
