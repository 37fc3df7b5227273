"""Train GPT-2 or LLaMA with one learning rate per block type.

    python train.py config/demo.py                                                  # a LLaMA on a laptop
    python train.py config/demo.py --blockwise=False --out_dir=out/demo/one_rate    # the plain AdamW baseline
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_small.py --learning_rate=6e-4 --lr_mult.Emb=12

Any number of config files and --key=value; order counts, later wins.
"""

import os
import sys

from blockwise import exit_on_user_error, print0
from blockwise.settings import TrainConfig
from blockwise.signals import StopRequest, end_with_launcher
from configurator import configure

FLAGS = {
    "print_config": "print the resolved config as JSON and exit",
    "dry_run": "print config, parameters per block, tokens per step and memory, check the data fully, and exit",
    "dry_run=measure": "the same, and measure the memory of a real step, as --dry_run does where there is a GPU",
}
if __name__ == "__main__":  # before torch is loaded: --help answers at once, and no signal finds us without a handler
    end_with_launcher()
    stop = StopRequest()
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same; blocks that grow leave no gaps
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    with exit_on_user_error():
        config, given, flags = configure(TrainConfig, sys.argv[1:], __doc__, FLAGS)
    if "dry_run" in flags:
        stop.release()  # there is nothing to save

import gc
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from blockwise.blocks import param_groups
from blockwise.distributed import World
from blockwise.layer_warmup import LayerWarmup
from blockwise.lr_multipliers import LRMultipliers
from blockwise.optimizers import keep_state, optimizer_for
from blockwise.qk_clip import clip_qk
from blockwise.schedules import block_rate, due, schedule_notes
from blockwise.training import (
    EMA,
    BlockStats,
    LiveCurvature,
    Output,
    Precision,
    Profiler,
    Progress,
    Throughput,
    TrainBatches,
    checkpoint_of,
    collecting_by_hand,
    dry_run,
    eval_batches,
    find_start,
    for_this_machine,
    out_of_memory_is_a_mistake,
    parallelize,
    print_config,
    print_summary,
    set_up_torch,
    shard_and_move,
    total_norm,
)
from model import ModelConfig, Transformer


def main(config, given, flags, stop):
    """Returns the exit status. given: keys that the user set; stop: becomes true when a signal asks to end."""
    compile_may_fail = config.compile == "auto"
    config = for_this_machine(config)
    if "print_config" in flags:
        print_config(config)
        return 0
    with World.start(config.device, config.backend) as world, out_of_memory_is_a_mistake(config, world.device):
        return train(config, given, flags, stop, world, compile_may_fail)


# ---------------------------------------------------------------------------------------------------------------------
# The experiment: AdamW with one group, hence one learning rate and one weight decay, per block type. Blocks differ in
# sharpness by orders of magnitude; one rate for all is limited by the sharpest, and the flat ones could go faster.


def make_optimizer(config, model, lr_mult):
    """lr_mult: {block type: peak learning rate over config.learning_rate}; the loop sets each group's rate."""
    groups = param_groups(model, config.learning_rate, lr_mult, config.weight_decay, config.wd_mult)
    return optimizer_for(config, groups)


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a step reads and changes."""

    config: TrainConfig
    world: World
    raw_model: Transformer
    optimizer: torch.optim.Optimizer
    precision: Precision
    batches: TrainBatches
    progress: Progress
    ema: EMA
    throughput: Throughput
    stop: object  # becomes true when a signal asks the run to save and exit
    model: nn.Module | None = None  # what trains: raw_model, compiled, under DDP
    eval_model: nn.Module | None = None  # the same without DDP

    def loss(self, model, step, micro):
        """Loss of this process's micro-step `micro`. Data and dropout follow from its address: a resume is exact."""
        x, y = self.batches(step, micro)  # (B, T) each
        torch.manual_seed(self.batches.dropout_seed(step, micro))
        with self.precision.autocast:
            return model(x, y)


def train(config, given, flags, stop, world, compile_may_fail):
    # Where the run starts: its checkpoint, pretrained weights or nothing; its config and its data follow from that
    start = find_start(config, given, flags, world)
    config, data = start.config, start.data
    model_config = ModelConfig.of(config, doc_end=data.end_of_text if config.doc_mask else None)
    progress = Progress.of(start.checkpoint)
    layers = LayerWarmup(config, start.checkpoint)
    lr_mult = LRMultipliers(config, start.checkpoint)
    notes = [data.note, layers.describe(progress.step), lr_mult.describe(), *schedule_notes(config)]
    if "dry_run" in flags:
        make_model = partial(Transformer, activation_checkpointing=config.activation_checkpointing)
        more = notes, world, compile_may_fail, "dry_run=measure" in flags
        world.on_master(dry_run, config, make_model, model_config, data, lr_mult.final(), *more)
        return 0
    if progress.step > config.max_iters and not config.eval_only:
        print0(f"{start.path} is past max_iters={config.max_iters}: nothing to do")
        return 0

    # The model and its optimizer
    set_up_torch(config)
    raw_model = start.model(Transformer, model_config)
    raw_model.activation_checkpointing = config.activation_checkpointing
    layers.begin(raw_model, progress.step)
    shard_and_move(raw_model, config, world)
    optimizer = make_optimizer(config, raw_model, lr_mult.at(progress.step))
    precision = Precision(config, world.device)
    start.restore(optimizer, precision)

    # What is measured, logged and saved; nothing before this line writes to out_dir
    ema = EMA(raw_model, config.ema_decay, start.checkpoint)
    curvature = LiveCurvature(config, raw_model, data.train, world, start.checkpoint)
    output = Output(config, start, progress, world)
    print_summary(config, raw_model, lr_mult.at(progress.step), notes, world)
    throughput = Throughput(raw_model, world, config.dtype, config.tokens_per_step, progress.step, config.max_iters)
    batches = TrainBatches(config, data.train, world)
    start.checkpoint = None  # frees what was read

    run = Run(config, world, raw_model, optimizer, precision, batches, progress, ema, throughput, stop)
    parallelize(run, compile_may_fail)
    state = partial(checkpoint_of, run, data, model_config, layers, lr_mult, curvature)
    if config.eval_only:
        if losses := validate(run, data.val, last=progress.step == config.max_iters):
            output.log(progress.begin(progress.step) | losses)
            print0(f"validation loss {losses['val/loss']}")
        output.finish(0)
        return 0

    # The loop. Its last pass only evaluates and saves.
    profiler = Profiler(config, world)
    stopping, status = world.any(stop), 0
    with output.saving_on_error(state), collecting_by_hand():
        for step in range(progress.step, config.max_iters + 1):
            last = step == config.max_iters
            row = progress.begin(step)

            # Architecture warm-up: more layers, which keep what the optimizer knows of the others
            if layers.grow_at(raw_model, step):
                print0(f"step {step}: {layers.describe(step)}")
                layers.activate(raw_model, step)
                run.optimizer = keep_state(make_optimizer(config, raw_model, lr_mult.at(step)), run.optimizer)
                parallelize(run, compile_may_fail)

            # lr_mult=auto: the multipliers follow from the sharpness of every block
            if lr_mult.measure_at(step) and not stopping:
                row |= lr_mult.measure(partial(curvature.sharpness, optimizer=run.optimizer), partial(world.any, stop))
                stopping = lr_mult.measured is None
                print0(f"step {step}: {lr_mult.describe()}")

            # Evaluate and save
            losses = {}
            if not stopping and (last or step == 0 or due(step, config.eval_interval)):
                losses = validate(run, data.val, last)
                stopping = world.any(stop)
            output.save_if_due(state, losses.get("val/loss"), must=last or stopping)
            row |= losses
            if last or stopping:
                if losses:
                    output.log(row)
                break

            # Every block's learning rate: one schedule, times the block's multiplier
            multipliers = lr_mult.at(step)
            for group in run.optimizer.param_groups:
                group["lr_mult"] = multipliers[group["block"]]
                group["lr"] = block_rate(config, step, group["lr_mult"])

            # The curvature of the loss where this step starts
            row = curvature.measure(step, run.optimizer) | row

            step_row, stopping = train_step(run, step, due(step, config.log_interval) or len(row) > 2)
            profiler.step()
            if step_row:
                output.log(row | step_row, throughput.eta)
            if progress.gives_up(config.nan_policy):
                output.report_not_finite(row | step_row)
                stopping, status = False, 3  # nothing was saved, also where a signal came in this step
                break

    if stopping:
        cause = stop.signal or "a signal"
        print0(f"stopped by {cause}: saved at step {progress.step}; continue with --init_from=resume")
    profiler.stop()
    output.finish(status)
    return status


def train_step(run, step, logging):
    """One update of the weights. Returns (its row, {} if it is not logged; whether a process was asked to stop)."""
    config, world, optimizer, precision = run.config, run.world, run.optimizer, run.precision
    micro_steps = config.gradient_accumulation_steps // world.size

    # Forward and backward. Gradients add up over micro-steps: each loss is divided, so that their sum is a mean
    run.throughput.start()
    step_loss = 0.0
    for micro in range(micro_steps):
        run.model.require_backward_grad_sync = micro == micro_steps - 1  # DDP reads it in the forward pass
        loss = run.loss(run.model, step, micro) / micro_steps
        precision.backward(loss)
        step_loss += loss.detach()
    precision.unscale(optimizer)
    grad_norm = total_norm([p.grad for p in run.raw_model.parameters() if p.grad is not None])

    # What all processes know: the mean loss, and whether any of them was asked to stop
    loss, stop_requests = world.sum(float(step_loss) / world.size, float(bool(run.stop)))
    finite = math.isfinite(loss) and (precision.may_overflow or math.isfinite(grad_norm))
    logging = logging or not finite
    stats = BlockStats(optimizer, run.raw_model) if logging else None  # before the weights change

    # The update
    run.progress.updating = True
    if finite:
        if config.grad_clip > 0:
            nn.utils.clip_grads_with_norm_(run.raw_model.parameters(), config.grad_clip, grad_norm)
        precision.step(optimizer)  # in float16 an overflow only lowers the loss scale
        run.ema.update()
    if config.qk_clip:
        clip_qk(run.raw_model, config.qk_clip if finite else math.inf, world.all_reduce_max)
    precision.update()
    optimizer.zero_grad(set_to_none=True)
    run.progress.end(finite, config.tokens_per_step)

    # One row a step
    row = {"train/loss": loss, "grad_norm": grad_norm.item()} | stats.row(updated=finite) if logging else {}
    run.throughput.stop(step)
    if logging:
        row |= run.throughput.row() | run.batches.shares(step)
    return row, stop_requests > 0


def validate(run, split, last):
    """val/loss, also of the averaged weights, and at the end of a run test/loss; {} if a process was asked to stop."""
    score = partial(evaluate, run, split, full=last and run.config.full_eval)
    gc.collect()
    losses = score() | run.ema.evaluate(score)
    if last and run.config.test_loss:
        losses |= {key.replace("val/", "test/"): value for key, value in score(half=1).items()}
    return losses


@torch.no_grad()
def evaluate(run, split, half=0, full=False):
    """val/loss, the mean loss over the fixed sequences, and bits per byte; {} if a process was asked to stop.

    Of a mixture also those of each part, on sequences of its own. half: with test_loss, which half of the text; full:
    over all of it, in as many batches as that takes.
    """
    world, losses = run.world, []
    run.eval_model.eval()
    for part in split.parts:
        batches, number = [], 0
        for i, (x, y, counts) in enumerate(eval_batches(part, run.config, world, half, full)):  # (B, T) each
            if (world.size == 1 or i % 8 == 0) and world.any(run.stop):  # which several processes have to agree on
                run.eval_model.train()
                return {}
            with run.precision.autocast:
                batches.append(run.eval_model(x, y) * counts)
            number += counts
        total, number = world.sum(sum(torch.stack(batches).tolist()), number)  # the only wait for the device
        losses.append(total / number)
    run.eval_model.train()
    return split.val_row(losses)


if __name__ == "__main__":
    with exit_on_user_error():
        try:
            status = main(config, given, flags, stop)
        finally:
            stop.ignore_more()
        sys.exit(status)
