"""What a run leaves behind: metrics, console, checkpoints. Every process has an Output; rank 0's alone writes."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import torch

from blockwise import print0, warn
from blockwise.checkpoint import (
    SaveError,
    forget_val_losses,
    newest_checkpoint,
    quarantine_after,
    remove_unfinished,
    save_checkpoint,
)
from blockwise.hardware import device_name
from blockwise.logger import Logger, console_line
from blockwise.rundir import set_aside, write_config
from blockwise.training.sharding import gathered, is_sharded


def checkpoint_of(run, data, model_config, *features):
    """The checkpoint of this moment, as this process has it; None while weights are half updated."""
    if run.progress.updating:
        return None
    state = {
        "model": run.raw_model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "model_config": asdict(model_config),
        "config": asdict(run.config),
        "tokenizer": data.tokenizer,
        "data": data.identity,
    }
    for feature in (run.precision, run.progress, run.ema, *features):
        state |= feature.state_dict()
    return state


class Output:
    """Made once nothing can be the user's mistake any more: nothing before it writes to out_dir."""

    def __init__(self, config, start, progress, world):
        self.config, self.progress, self.world, self.is_master = config, progress, world, world.is_master
        self.logger, self.thread, self.writing = None, ThreadPoolExecutor(1), None
        if world.is_master and not config.eval_only:
            self.begin(start)
        progress.wandb_id = world.on_master(lambda: progress.wandb_id)  # after an error any rank may save

    def begin(self, start):
        """Make out_dir the run's: what an earlier run or a kill left there is moved or deleted; open the log."""
        config, progress = self.config, self.progress
        if start.checkpoint:
            quarantine_after(config.out_dir, progress.step)
            remove_unfinished(config.out_dir)
            if start.other_validation:
                forget_val_losses(config.out_dir)
        elif folder := set_aside(config.out_dir):
            print0(f"moved the old run in {config.out_dir} to {folder}")
        resolved = asdict(config) | {"data": start.data.identity}
        write_config(resolved, torch.__version__, device_name(self.world.device))
        self.logger = Logger(asdict(config), progress.step, progress.wandb_id)
        progress.wandb_id = self.logger.wandb_id

    @property
    def in_background(self):
        """Whether a thread writes checkpoints from copies. On a CPU the memory would hold the state twice meanwhile."""
        return self.world.device.type == "cuda"

    def log(self, row, eta=None):
        """One row of a step, to metrics.jsonl, wandb and the console. eta: seconds left, None: not known."""
        if self.logger:
            self.logger.log({"step": row["step"]} | row)
        print0(console_line(row, self.config.max_iters, eta, self.progress.skipped))

    def save_if_due(self, state, val_loss, must):
        """After an evaluation, or without one (val_loss is None); state: a function that returns the checkpoint."""
        step, config = self.progress.step, self.config
        improved = self.progress.note_validation(val_loss)
        due = val_loss is not None and step > 0 and (improved or config.always_save_checkpoint)
        if due and not must and not math.isfinite(val_loss):  # it would displace the last one that is good
            print0(f"step {step}: no checkpoint, since val/loss is {val_loss}; the ones before are kept")
            due = False
        if must or due or (step == 0 and config.keep_checkpoints == -1):
            self.save(state(), val_loss, must)

    def save(self, state, val_loss, must=False, without_peers=False):
        """Write a checkpoint; all processes call it together. Returns whether this process writes any.

        state: what the checkpoint holds, as each process has it. must: a failure ends the run, and the file is there
        on return; else it is a warning, and on CUDA a thread writes the file from a copy. without_peers: this process
        may be the only one here, and its state is complete.
        """
        self.wait_for_checkpoint()
        sharing = self.world if self.config.checkpoint_format == "sharded" and not without_peers else None
        if self.logger and not self.logger.flush():
            warn(f"{self.config.out_dir}: rows of metrics.jsonl are not on the disk, the checkpoint of this step is")
        background = self.in_background and not must and not sharing
        state = state if sharing else gathered(state, self.world, copy=background)
        if not (sharing or self.logger or without_peers):
            return False
        val_loss = val_loss if val_loss is not None and math.isfinite(val_loss) else None
        kept = self.config.keep_checkpoints, not self.config.always_save_checkpoint
        self.writing = partial(save_checkpoint, self.config.out_dir, state, val_loss, *kept, sharing)
        if background:
            self.writing = self.thread.submit(self.writing).result
        else:
            self.wait_for_checkpoint(must)
        return True

    def wait_for_checkpoint(self, must=False):
        """Return once the checkpoint is written that the last save began. Raises SaveError if must, else it warns."""
        try:
            write, self.writing = self.writing, None
            if write:
                write()
        except SaveError as error:
            if must:
                raise
            if self.is_master:
                warn(f"{error}; the run continues without it")

    @contextmanager
    def saving_on_error(self, state):
        """Inside, an exception saves a checkpoint before it is raised; state: a function that gives its dict, or None
        in the middle of an update."""
        try:
            yield
        except SaveError:
            raise
        except Exception as error:
            if is_sharded(self.config, self.world):  # the other processes would have to save their shares too
                raise
            try:
                if (current := state()) and self.save(current, None, must=True, without_peers=True):
                    warn(f"{type(error).__name__} in step {current['step']}: saved the state before that step")
            except Exception as second:
                warn(f"{type(error).__name__}, and no checkpoint could be saved: {second}")
            raise
        finally:
            self.wait_for_checkpoint()

    def report_not_finite(self, row):
        """row: of the step whose loss or gradient norm is not finite."""
        if not self.is_master:
            return
        self.wait_for_checkpoint()
        advice = "a lower learning_rate or longer warmup_iters"
        if self.config.dtype == "float16":
            advice += ", dtype=bfloat16 or float32"
        if self.config.nan_policy == "stop":
            advice += ", or --nan_policy=skip"
        warn(
            f"step {row['step']}: loss {row['train/loss']}, gradient norm {row['grad_norm']}: stopped before taking "
            f"this step; last good checkpoint: {newest_checkpoint(self.config.out_dir) or 'none'}; try {advice}"
        )

    def finish(self, status):
        if self.logger:
            self.logger.finish(status)
