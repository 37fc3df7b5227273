"""Train GPT-2 or LLaMA with one learning rate per block type.

    python train.py config/demo.py                        # a LLaMA on a laptop, in a minute or two
    python train.py config/demo.py --blockwise=False      # the plain AdamW baseline
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_small.py --learning_rate=6e-4 --lr_mult.Emb=12

Any number of config files and --key=value; order counts, later wins.
"""

import sys

from blockwise import exit_on_user_error
from blockwise.settings import TrainConfig
from blockwise.signals import StopRequest, end_with_launcher
from configurator import configure

FLAGS = {
    "print_config": "print the resolved config as JSON and exit",
    "dry_run": "print config, parameters per block, tokens per step and memory, check the data fully, and exit",
}
if __name__ == "__main__":  # before torch is loaded: --help answers at once, and no signal finds us without a handler
    end_with_launcher()
    stop = StopRequest()
    with exit_on_user_error():
        config, given, flags = configure(TrainConfig, sys.argv[1:], __doc__, FLAGS)

import json
import math
from dataclasses import asdict
from functools import partial

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from blockwise import print0
from blockwise.blocks import param_groups
from blockwise.checkpoint import load_optimizer
from blockwise.distributed import World
from blockwise.hardware import autocast
from blockwise.layer_warmup import LayerWarmup
from blockwise.loader import eval_batches, eval_starts, micro_seed
from blockwise.lr_multipliers import LRMultipliers
from blockwise.optimizers import keep_state, optimizer_for
from blockwise.qk_clip import clip_qk
from blockwise.schedules import block_rate, due
from blockwise.training.batches import TrainBatches
from blockwise.training.block_stats import BlockStats
from blockwise.training.ema import EMA
from blockwise.training.live_curvature import LiveCurvature
from blockwise.training.machine import for_this_machine, out_of_memory_is_a_mistake, set_up_torch, to_device
from blockwise.training.output import Output
from blockwise.training.parallel import parallelize
from blockwise.training.profiler import Profiler
from blockwise.training.progress import Progress
from blockwise.training.sharding import full_tensor, shard_and_move
from blockwise.training.start import find_start
from blockwise.training.summary import dry_run, print_summary
from blockwise.training.throughput import Throughput
from model import ModelConfig, Transformer

# ---------------------------------------------------------------------------------------------------------------------


def main(config, given, flags, stop):
    """Returns the exit status. given: keys that the user set; stop: true once the run is to save and end."""
    compile_may_fail = config.compile == "auto"
    config = for_this_machine(config)
    if "print_config" in flags:
        print0(json.dumps(asdict(config.resolved_without_data()), indent=1))
        return 0
    with World.start(config.device, config.backend) as world, out_of_memory_is_a_mistake(config, world.device):
        return train(config, given, flags, stop, world, compile_may_fail)


# ---------------------------------------------------------------------------------------------------------------------
# The experiment: AdamW with one group, hence one learning rate and one weight decay, per block type


def make_optimizer(config, model, lr_mult):
    """lr_mult: {block type: peak learning rate over config.learning_rate}; the loop sets each group's rate."""
    groups = param_groups(model, config.learning_rate, lr_mult, config.weight_decay, config.wd_mult)
    return optimizer_for(config, groups)


# ---------------------------------------------------------------------------------------------------------------------


def train(config, given, flags, stop, world, compile_may_fail):
    # Where the run starts: its checkpoint, pretrained weights or nothing; its config and its data follow from that
    start = find_start(config, given, flags, world)
    config, data, checkpoint = start.config, start.data, start.checkpoint
    model_config = ModelConfig.of(config, doc_end=data.end_of_text if config.doc_mask else None)
    progress = Progress.of(checkpoint)
    layers = LayerWarmup(config, checkpoint)
    lr_mult = LRMultipliers(config, checkpoint)
    plans = [data.note, layers.describe(progress.step), lr_mult.describe()]
    if "dry_run" in flags:
        make_model = partial(Transformer, activation_checkpointing=config.activation_checkpointing)
        world.on_master(dry_run, config, make_model, model_config, data, lr_mult.final(), plans, world)
        return 0
    if progress.step > config.max_iters and not config.eval_only:
        print0(f"{start.path} is past max_iters={config.max_iters}: nothing to do")
        return 0

    # The model and its optimizer
    set_up_torch(config)
    if checkpoint:
        raw_model = Transformer.from_checkpoint(checkpoint, model_config)
    elif start.pretrained:
        raw_model = Transformer.from_pretrained(start.pretrained, model_config)
    else:
        raw_model = Transformer(model_config)
        layers.lock(raw_model)
    raw_model.activation_checkpointing = config.activation_checkpointing
    layers.activate(raw_model, progress.step)
    shard_and_move(raw_model, config, world)
    optimizer = make_optimizer(config, raw_model, lr_mult.at(progress.step))
    scaler = torch.amp.GradScaler(world.device.type, enabled=config.dtype == "float16")
    if checkpoint:
        if checkpoint["config"]["optimizer"] == config.optimizer:
            load_optimizer(optimizer, checkpoint["optimizer"])
        else:
            print0(f"  optimizer state not restored: the checkpoint was written by {checkpoint['config']['optimizer']}")
        if checkpoint["scaler"]:  # empty where float16 was off
            scaler.load_state_dict(checkpoint["scaler"])

    # What is measured, logged and saved; from here on out_dir changes
    ema = EMA(config, raw_model, checkpoint)
    live = LiveCurvature(config, raw_model, data.train, world, checkpoint)
    output = Output(config, start, progress, world)
    print_summary(config, raw_model, lr_mult.at(progress.step), plans, world)
    profiler = Profiler(config, world)
    throughput = Throughput(config, world, raw_model, progress.step)
    del checkpoint, start.checkpoint

    micro_steps = config.gradient_accumulation_steps // world.size
    batches = TrainBatches(config, data.train, world)
    precision = autocast(world.device, getattr(torch, config.dtype))
    updating = False  # in the middle of an update there is no state to save

    def loss_of(model, step, micro):
        """Loss of this process's micro-step `micro`. Its data and its dropout follow from its address alone."""
        x, y = batches(step, micro)  # (B, T) each
        torch.manual_seed(micro_seed(config.seed, step, micro * world.size + world.rank))
        with precision:
            return model(x, y)

    def first_pass(model):
        loss_of(model, progress.step, 0).backward()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():  # an evaluation has a graph of its own
            loss_of(model.eval(), progress.step, 0)
        model.train()

    def state():
        """The checkpoint of this moment, as this process has it."""
        return None if updating else {
            "model": raw_model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
            "model_config": asdict(model_config), "config": asdict(config),
            "tokenizer": data.tokenizer, "data": data.identity,
            **progress.state_dict(), **layers.state_dict(), **lr_mult.state_dict(), **live.state_dict(),
            **ema.state_dict(),
        }  # fmt: skip

    eval_model, model = parallelize(raw_model, config, world, first_pass, compile_may_fail)
    start_step, stopping, status = progress.step, world.any(stop), 0

    # The loop. Its last pass only evaluates and saves.
    with output.saving_on_error(state):
        for step in range(start_step, max(start_step, config.max_iters) + 1):
            last = step == config.max_iters
            progress.step = step
            row = {"step": step, "tokens": progress.tokens}

            # Architecture warm-up: more layers
            if layers.grow_at(raw_model, step):
                print0(f"step {step}: {layers.describe(step)}")
                layers.activate(raw_model, step)
                old, optimizer = optimizer, make_optimizer(config, raw_model, lr_mult.at(step))
                keep_state(optimizer, old)
                del model, eval_model, old  # the old DDP's hooks go with it
                eval_model, model = parallelize(raw_model, config, world, first_pass, compile_may_fail)

            # lr_mult=auto: the multipliers follow from the sharpness of every block
            if lr_mult.measure_at(step) and not (stopping or config.eval_only):
                row |= lr_mult.measure(partial(live.sharpness, optimizer=optimizer), partial(world.any, stop))
                stopping = lr_mult.measured is None
                print0(f"step {step}: {lr_mult.describe()}")

            # Evaluate and save
            losses = {}
            if not stopping and (last or step == 0 or due(step, config.eval_interval) or config.eval_only):
                full = last and config.full_eval
                score = partial(evaluate, eval_model, data.val, config, world, precision, stop, full=full)
                losses = score() | ema.evaluate(score)
                if last and config.test_loss:
                    losses |= {key.replace("val/", "test/"): value for key, value in score(half=1).items()}
                stopping = world.any(stop)
            val_loss = losses.get("val/loss")
            improved = progress.note_validation(val_loss)
            worth_saving = val_loss is not None and step > 0 and (improved or config.always_save_checkpoint)
            worth_saving |= step == 0 and config.keep_checkpoints == -1
            if (last or stopping or worth_saving) and not config.eval_only:
                output.save(state(), val_loss, must=last or stopping)
            row |= losses
            if last or stopping or config.eval_only:
                if losses:
                    output.log(row)
                if losses and config.eval_only:
                    print0(f"validation loss {val_loss}")
                break

            # Every block's learning rate
            multipliers = lr_mult.at(step)
            for group in optimizer.param_groups:
                group["lr_mult"] = multipliers[group["block"]]
                group["lr"] = block_rate(config, step, group["lr_mult"])

            # The curvature of the loss where this step starts
            row = live.measure(step, optimizer) | row

            # Forward and backward
            throughput.start()
            step_loss = 0.0
            for micro in range(micro_steps):
                model.require_backward_grad_sync = micro == micro_steps - 1  # DDP reads it in the forward pass
                loss = loss_of(model, step, micro) / micro_steps
                scaler.scale(loss).backward()
                step_loss += loss.detach()
            scaler.unscale_(optimizer)
            grads = [p.grad for p in raw_model.parameters() if p.grad is not None]
            grad_norm = full_tensor(get_total_norm(grads))

            # What all ranks know: the mean loss, and whether any of them was asked to stop
            loss, stop_requests = world.sum(float(step_loss) / world.size, float(bool(stop)))
            stopping = stop_requests > 0
            overflow = scaler.is_enabled() and scaler.get_scale() > 1  # a bad norm then asks for a smaller scale only
            finite = math.isfinite(loss) and (overflow or math.isfinite(grad_norm))

            # The update; each block's gradient and update are measured where they are logged
            logging = due(step, config.log_interval) or row.keys() > {"step", "tokens"} or not finite
            stats = BlockStats(optimizer, raw_model) if logging else None
            total_norm = grad_norm.item() if logging else None
            updating = True
            if finite:
                if config.grad_clip > 0:
                    clip_grads_with_norm_(raw_model.parameters(), config.grad_clip, grad_norm)
                scaler.step(optimizer)
                ema.update()
            if config.qk_clip:
                clip_qk(raw_model, config.qk_clip if finite else math.inf, world.all_reduce_max)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            progress.note_step(finite, throughput.tokens_per_step)
            progress.step, updating = step + 1, False
            profiler.step()

            # One row a step
            throughput.stop(step)
            if logging:
                row |= {"train/loss": loss, "grad_norm": total_norm} | stats.row(updated=finite) | throughput.row()
                row |= batches.shares(step)
                output.log(row, throughput.eta)
            del grads, stats  # or old gradients, and a copy of the weights, live on through the next step
            if not finite and progress.gives_up(config.nan_policy):
                output.report_not_finite(step, loss, total_norm)
                status = 3
                break

    if stopping:
        cause = stop.signal or "a signal"
        print0(f"stopped by {cause}: saved at step {progress.step}; continue with --init_from=resume")
    profiler.stop()
    output.finish(status)
    return status


# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model, split, config, world, precision, stop, half=0, full=False):
    """val/loss, the mean loss over the fixed sequences, and bits per byte; {} if any process is asked to stop.

    Of a mixture also those of each part, on sequences of its own. half: with test_loss, which half of the text; full:
    over all of it, in as many batches as that takes.
    """
    losses, half = [], half if config.test_loss else None
    model.eval()
    for part in split.parts:
        batches = eval_batches(part, config.batch_size, config.block_size, half) if full else config.eval_iters
        starts, total = eval_starts(part, batches * config.batch_size, config.block_size, half), 0.0
        for first in range(0, batches, world.size):
            if world.any(stop):
                model.train()
                return {}
            number = first + world.rank
            begin = min(number, batches - 1) * config.batch_size  # all have a pass, or FSDP would wait
            x, y = part.sequences(starts[begin : begin + config.batch_size], config.block_size)  # (B, T) each
            with precision:
                loss = model(to_device(x, world.device), to_device(y, world.device)).item()
            total += loss if number < batches else 0.0
        losses.append(world.sum(total)[0] / batches)
    model.train()
    return split.val_row(losses)


if __name__ == "__main__":
    with exit_on_user_error():
        try:
            status = main(config, given, flags, stop)
        finally:
            stop.ignore_more()
        sys.exit(status)
