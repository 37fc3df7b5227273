"""Where a run starts: from scratch, from a checkpoint in its folder or from pretrained weights; on which data."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from blockwise import UserError, print0
from blockwise.checkpoint import checkpoint_files, load_checkpoint, load_optimizer, newest_checkpoint
from blockwise.data.identity import check_checkpoint, check_pretrained
from blockwise.data.mixture import open_dataset
from blockwise.files import FolderLock
from blockwise.huggingface.load import Pretrained
from blockwise.loader import AbsentDataset, Dataset, NotPrepared, eval_starts
from blockwise.rundir import run_lock
from blockwise.settings import ARCH_WARMUP, ARCHITECTURE, AUTO_MULT, TrainConfig, is_hugging_face


@dataclass
class Start:
    """config: resolved, with the architecture of the weights; checkpoint: a dict, or None; pretrained: the source of
    weights, or None; path: of the checkpoint; lock: of out_dir, held as long as this lives (None: nothing is written);
    other_validation: the checkpoint's validation losses are of other text.
    """

    config: TrainConfig
    data: Dataset
    checkpoint: dict | None = None
    path: object = None
    pretrained: Pretrained | None = None
    lock: FolderLock | None = None
    other_validation: bool = False

    def model(self, Model, model_config):
        """A Model, of the class of model.py, with the weights that the run starts from."""
        if self.checkpoint:
            return Model.from_checkpoint(self.checkpoint, model_config)
        return Model.from_pretrained(self.pretrained, model_config) if self.pretrained else Model(model_config)

    def restore(self, optimizer, precision):
        """Give a resumed run's optimizer and loss scale the checkpoint's state."""
        if not self.checkpoint:
            return
        if (saved := self.checkpoint["config"]["optimizer"]) == self.config.optimizer:
            load_optimizer(optimizer, self.checkpoint["optimizer"])
        else:
            print0(f"  optimizer state not restored: the checkpoint was written by {saved}")
        precision.load_state_dict(self.checkpoint)


def find_start(config, given, flags, world):
    """The Start of a run. Takes the lock of out_dir, changes nothing in it.

    given: keys that the user set; flags: of the command line.
    Raises UserError for what cannot be resumed, a key that contradicts the weights, data that is missing or broken.
    """
    weights = Path(config.init_from.removeprefix("hf:"))
    overlap = is_hugging_face(config.init_from) and weights.resolve() == Path(config.out_dir).resolve()
    config.check(
        "out_dir", not overlap or config.eval_only, f"another folder than that of init_from={config.init_from}"
    )
    multiple = config.gradient_accumulation_steps % world.size == 0
    config.check("gradient_accumulation_steps", multiple, f"a multiple of the {world.size} processes")
    read_only = "dry_run" in flags or config.eval_only
    lock = None if read_only else run_lock(config.out_dir)
    path = world.on_master(find_checkpoint, config, lock)
    mapped = config.device != "cpu"  # there the optimizer's state would hold on to the file
    checkpoint, pretrained = load_checkpoint(path, mapped, on_disk=("optimizer", "ema")) if path else None, None
    if checkpoint:
        config = resumed_config(config, given, checkpoint, path)
    elif is_hugging_face(config.init_from):
        world.on_master(Pretrained, config.init_from)  # one download; then all find it
        pretrained = Pretrained(config.init_from)
        config = pretrained_config(config, given, pretrained.shape)
    else:
        config = config.resolved()
    weights_bound = (path or pretrained) and "vocab_size" not in given  # then the data's own bound for ids holds
    rows = None if weights_bound else config.vocab_size
    try:
        data = open_dataset(config.data_dir, config.dataset, config.block_size, rows)
    except NotPrepared as error:
        if "dry_run" not in flags or path or pretrained:
            raise
        data = AbsentDataset(config.dataset, rows, error)  # what does not need the data is shown; then comes the error
    if not weights_bound:
        config = replace(config, vocab_size=data.embedding_rows).resolved()  # a rule may need the vocabulary
    elif data.tokenizer["vocab_size"] > config.vocab_size:
        ids, source = data.tokenizer["vocab_size"], path or config.init_from
        raise UserError(f"data set {config.dataset} has {ids} token ids, {source} only {config.vocab_size}")
    if config.doc_mask and data.end_of_text is None:
        raise UserError(f"doc_mask=True: data set {config.dataset} has no end-of-text token; expected doc_mask=False")
    for part in data.val.parts if config.test_loss and data.val else ():
        eval_starts(part, 1, config.block_size, half=0)
    if pretrained:
        check_pretrained(pretrained.folder, data, config.init_from)
    other_validation = bool(checkpoint) and not check_checkpoint(checkpoint, data, path)
    if other_validation:
        checkpoint["best_val_loss"] = None
    return Start(config, data, checkpoint, path, pretrained, lock, other_validation)


def find_checkpoint(config, lock):
    """Path of the checkpoint to continue from, None to start without; lock: of the folder, taken before looking.

    Raises UserError if there ought to be a checkpoint and is none, or if another run has the folder.
    """
    if config.init_from == "resume" and not checkpoint_files(config.out_dir):
        raise UserError(f"no checkpoint to resume in out_dir={config.out_dir}; --init_from=scratch starts a run")
    if lock:
        lock.acquire()
    path = newest_checkpoint(config.out_dir) if config.init_from in ("resume", "auto") else None
    if path is None and config.init_from == "auto":
        print0(f"no checkpoint in {config.out_dir}: starting from scratch")
    return path


def with_architecture(config, given, architecture, source):
    """config with the architecture of the weights in `source`; a key that was given and differs is a UserError.

    What the weights' own config does not say has its default.
    """
    architecture = {**{key: getattr(TrainConfig, key) for key in ARCHITECTURE}, **architecture}
    for key in ARCHITECTURE:
        if key not in given or getattr(config, key) is None:
            config = replace(config, **{key: architecture[key]})
        elif getattr(config, key) != architecture[key]:
            problem = f"{source} has {key}={architecture[key]}, and its weights fix that"
            raise UserError(f"{key}={getattr(config, key)}: {problem}")
    return config.resolved()


def pretrained_config(config, given, shape):
    """config for a run that starts from the weights that init_from names; block_size may be less than theirs."""
    if "block_size" in given:
        shape = {**shape, "block_size": min(config.block_size, shape["block_size"])}
    config = with_architecture(config, given, shape, config.init_from)
    print0(f"starting from {config.init_from}: {config.model_type}, context of {config.block_size} tokens")
    return config


def resumed_config(config, given, checkpoint, path):
    """config for a run that continues from `path`: the architecture is the checkpoint's, all else is the command's."""
    old = checkpoint["config"]
    config = with_architecture(config, given, old, path)
    print0(f"resuming from {path}")
    if config.arch_warmup and not old["arch_warmup"]:
        raise UserError(f"arch_warmup=True: {path} began with all of its layers; expected --init_from=scratch")
    fixed = ARCH_WARMUP if old["arch_warmup"] else ()
    fixed += AUTO_MULT if config.lr_mult == old["lr_mult"] == "auto" else ()
    for key in fixed:
        if key in given and getattr(config, key) != old[key]:
            print0(f"  {key} keeps the checkpoint's value {old[key]} (fixed for the whole run)")
        config = replace(config, **{key: old[key]})
    for key, value in asdict(config).items():
        if key != "init_from" and value != old[key]:
            print0(f"  {key} was {old[key]}, is {value}")
    return config
