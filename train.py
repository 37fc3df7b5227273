"""Train GPT-2 or LLaMA with one learning rate per block type.

    python train.py config/demo.py                        # a LLaMA on a laptop, in a minute or two
    python train.py config/demo.py --blockwise=False      # the plain AdamW baseline
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_small.py --learning_rate=6e-4 --lr_mult.Emb=12

Any number of config files and --key=value; order counts, later wins.
"""

import sys

from blockwise import UserError, exit_on_user_error
from blockwise.settings import ARCH_WARMUP, ARCHITECTURE, AUTO_MULT, TrainConfig
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
import os
import time
from dataclasses import asdict, fields, replace
from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from blockwise import automult
from blockwise.archwarmup import layer_schedule, layers_at, make_identity, put_to_work, told
from blockwise.blocks import param_groups
from blockwise.checkpoint import (
    SaveError,
    load_checkpoint,
    load_optimizer,
    manifests,
    newest_checkpoint,
    save_checkpoint,
    set_aside_after,
)
from blockwise.curvature import Batch, Live
from blockwise.distributed import World, auto_device, auto_dtype
from blockwise.hardware import (
    autocast,
    free_memory,
    largest_batch,
    peak_flops,
    peak_memory_mb,
    resident_memory,
    training_memory,
)
from blockwise.huggingface.load import Pretrained
from blockwise.huggingface.names import is_hugging_face
from blockwise.loader import Dataset, eval_starts, micro_seed, probe_batch, train_batch
from blockwise.logger import Logger, console_line, first_line, warn
from blockwise.optimizers import build_optimizer, keep_state, preconditioner, stability_threshold, state_bytes
from blockwise.qkclip import clip_qk
from blockwise.rundir import run_lock, set_aside, write_config
from blockwise.schedules import block_rate
from blockwise.spectrum import largest_eigenvalue, power_iteration
from model import ModelConfig, Transformer

NAN_PATIENCE = 10  # skipped steps in a row at which nan_policy=skip gives up
ETA_AFTER = 10  # steps that the time left is not judged by


def main(config, given, flags, stop):
    """Returns the exit status. stop: true once the run shall save and end."""
    compile_may_fail = config.compile == "auto"
    config = for_this_machine(config)
    if "print_config" in flags:
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(asdict(config.resolved()), indent=1))
        return 0
    with World.start(config.device, config.backend) as world:
        return train(config, given, flags, stop, world, compile_may_fail)


def train(config, given, flags, stop, world, compile_may_fail):
    device = world.device
    say = print if world.is_master else lambda text: None
    config.check(
        "gradient_accumulation_steps",
        config.gradient_accumulation_steps % world.size == 0,
        f"a multiple of the {world.size} processes",
    )

    # The run's folder, the checkpoint in it if there is one, the data
    only_looks = config.eval_only and manifests(config.out_dir)  # evaluates beside a run, which stays as it is
    lock = None if "dry_run" in flags or only_looks else run_lock(config.out_dir)
    path = world.on_master(find_checkpoint, config, lock)
    saved = load_checkpoint(path) if path else None
    pretrained = None
    if saved:
        config = continued(config, given, saved, path, say)
    elif is_hugging_face(config.init_from):
        world.on_master(Pretrained, config.init_from)  # one download; then all find it
        pretrained = Pretrained(config.init_from)
        config = started_from(config, given, pretrained.shape, say)
    else:
        config = config.resolved()
    own_vocabulary = (saved or pretrained) and "vocab_size" not in given  # then the data's own bound for ids holds
    data = Dataset.open(
        config.data_dir, config.dataset, config.block_size, None if own_vocabulary else config.vocab_size
    )
    if not own_vocabulary:
        config = replace(config, vocab_size=data.vocab_size)
    elif data.tokenizer["vocab_size"] > config.vocab_size:
        raise UserError(
            f"data set {config.dataset} has {data.tokenizer['vocab_size']} token ids, "
            f"{path or config.init_from} only {config.vocab_size}"
        )
    model_config = ModelConfig(**{f.name: getattr(config, f.name) for f in fields(ModelConfig)})
    layers = saved.get("layers", [[0, config.n_layer]]) if saved else layer_schedule(config)
    measured = saved.get("auto_mult") if saved and config.lr_mult == "auto" else None
    plan = told(layers, saved["step"] if saved else 0)
    plan += f"\n{automult.told(config, measured)}" if config.lr_mult == "auto" else ""
    if "dry_run" in flags:
        world.on_master(dry_run, config, model_config, data, world, automult.multipliers_at(config, math.inf, measured))
        say(plan)
        return 0
    if saved and saved["step"] > config.max_iters and not config.eval_only:
        say(f"{path} is past max_iters={config.max_iters}: nothing to do")
        return 0

    # The model
    set_up_torch(config)
    torch.manual_seed(config.seed)
    raw_model = Transformer(model_config, config.activation_checkpointing)
    if saved:
        raw_model.load_state_dict(saved["model"])
    elif pretrained:
        raw_model.load_state_dict(pretrained.weights(raw_model.state_dict()))
    else:
        for block in raw_model.blocks[layers_at(layers, 0) :]:
            make_identity(block)
    raw_model.to(device)

    def at_work(step):
        """The parameters at work in a step; groups of them, one per block type; an optimizer (Muon splits them)."""
        put_to_work(raw_model, layers_at(layers, step))
        parameters = [p for p in raw_model.parameters() if p.requires_grad]
        mult = automult.multipliers_at(config, step, progress["auto_mult"])
        groups = param_groups(raw_model, config.learning_rate, mult, config.weight_decay, config.wd_mult)
        return parameters, groups, build_optimizer(config.optimizer, groups, *optimizer_settings(config))

    # What a checkpoint holds besides the weights
    progress = {"step": 0, "tokens": 0, "best_val_loss": None, "skipped": 0, "skipped_in_a_row": 0, "wandb_id": None}
    if saved:
        progress = {key: saved[key] for key in progress}
    progress["auto_mult"] = measured
    parameters, groups, optimizer = at_work(progress["step"])
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    if saved:
        if saved["config"]["optimizer"] == config.optimizer:
            load_optimizer(optimizer, saved["optimizer"])
        else:
            say(f"  {config.optimizer} starts without a state: the checkpoint's is of another optimizer")
        if saved["scaler"]:  # empty where float16 was off
            scaler.load_state_dict(saved["scaler"])
    live = live_curvature(config, raw_model, data.train, world)
    live.vector = saved.get("eigenvector") if saved and config.curvature_interval else None
    start_step = progress["step"]

    # From here on the folder changes
    logger = None
    if world.is_master and not only_looks:
        if saved:
            set_aside_after(config.out_dir, start_step)
        elif folder := set_aside(config.out_dir):
            say(f"moved the old run in {config.out_dir} to {folder}")
        write_config(asdict(config), torch.__version__)
        logger = Logger(asdict(config), start_step, progress["wandb_id"])
        progress["wandb_id"] = logger.wandb_id
    del saved

    micro_steps = config.gradient_accumulation_steps // world.size
    tokens_per_step = config.gradient_accumulation_steps * config.batch_size * config.block_size
    print_start(config, groups, plan, micro_steps, tokens_per_step, world, say)
    dtype = getattr(torch, config.dtype)
    precision = autocast(device, dtype)
    peak = peak_flops(device, dtype)

    def loss_of(model, step, micro):
        """Loss of this process's micro-step `micro`. Its data and its dropout follow from its address alone."""
        share = micro * world.size + world.rank
        x, y = train_batch(data.train, config.seed, step, share, config.batch_size, config.block_size)  # (B, T) each
        torch.manual_seed(micro_seed(config.seed, step, share))
        with precision:
            return model(to_device(x, device), to_device(y, device))

    def ready(step):
        """raw_model compiled, and that under DDP: what evaluates and what trains from a step on."""

        def warm_up(model):
            loss_of(model, step, 0).backward()
            optimizer.zero_grad(set_to_none=True)

        fast = compiled(raw_model, warm_up, compile_may_fail, world) if config.compile else raw_model
        if world.size == 1:
            return fast, fast
        device_ids = [device.index] if device.type == "cuda" else None
        parallel = DistributedDataParallel(fast, device_ids=device_ids, gradient_as_bucket_view=True)
        parallel.broadcast_buffers = False  # the rotary tables, constant
        warm_up(parallel)  # DDP settles the order of its sums after the first backward: not in a step that counts
        return fast, parallel

    def save(val_loss, must=False):
        if not world.is_master:
            return
        state = {
            **progress, "model": raw_model.state_dict(), "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(), "model_config": asdict(model_config), "config": asdict(config),
            "tokenizer": data.tokenizer, "layers": layers, "eigenvector": live.vector,
        }  # fmt: skip
        known = val_loss if val_loss is not None and math.isfinite(val_loss) else None
        try:
            if not logger.flush():
                raise SaveError(f"{config.out_dir}: no checkpoint ahead of rows that are not on the disk")
            save_checkpoint(config.out_dir, state, known, config.keep_checkpoints, not config.always_save_checkpoint)
        except SaveError as error:
            if must:
                raise
            warn(f"{error}; the run goes on")

    def log(row, eta=None):
        if logger:
            logger.log(row)
        if world.is_master:
            print(console_line(row, config.max_iters, eta, progress["skipped"]), flush=True)

    eval_model, model = ready(start_step)
    profiler = start_profiler(config) if config.profile and world.is_master else None
    stopping = world.any(stop)
    seconds, steps_timed, eta_from = 0.0, 0, None
    status = 0

    # The loop. Its last pass only evaluates and saves.
    for step in range(start_step, max(start_step, config.max_iters) + 1):
        last = step == config.max_iters
        progress["step"] = step
        if layers_at(layers, step) > raw_model.layers_at_work:
            say(f"step {step}: {told(layers, step)}")
            old = optimizer
            parameters, groups, optimizer = at_work(step)
            keep_state(optimizer, old)
            del model, eval_model, old  # the old DDP's hooks go with it
            eval_model, model = ready(step)
        row = {"step": step, "tokens": progress["tokens"]}

        # lr_mult=auto: the multipliers follow from the sharpness of every block
        if step == config.auto_mult_step and not (stopping or config.eval_only):
            batch_of, asked = partial(probe, config, data.train, world), partial(world.any, stop)
            progress["auto_mult"], measured = automult.measure(config, live, groups, batch_of, asked)
            stopping = not measured
            row |= measured
            say(f"step {step}: {automult.told(config, progress['auto_mult'])}")

        val_loss = None
        if not stopping and (last or step == 0 or due(step, config.eval_interval) or config.eval_only):
            val_loss = evaluate(eval_model, data.val, config, world, precision, stop)
            stopping = val_loss is None
        worth_saving = step == 0 and config.keep_checkpoints == -1
        if val_loss is not None:
            row["val/loss"] = val_loss
            improved = progress["best_val_loss"] is None or val_loss < progress["best_val_loss"]
            if improved:
                progress["best_val_loss"] = val_loss
            worth_saving |= step > 0 and (improved or config.always_save_checkpoint)
        if (last or stopping or worth_saving) and not config.eval_only:
            save(val_loss, must=last or stopping)
        if last or stopping or config.eval_only:
            if val_loss is not None:
                log(row)
                if config.eval_only:
                    say(f"validation loss {val_loss}")
            break

        # Every block's learning rate
        mult = automult.multipliers_at(config, step, progress["auto_mult"])
        for group in optimizer.param_groups:
            group["lr_mult"] = mult[group["block"]]
            group["lr"] = block_rate(config, step, group["lr_mult"])

        # The curvature of the loss where this step starts
        if due(step, config.sharpness_interval) and "sharpness/Norm" not in row:
            row |= live.sharpness(step, optimizer.param_groups)
        if due(step, config.curvature_interval):
            row |= live.curvature(optimizer.param_groups, preconditioner(optimizer))

        # Forward and backward
        started = time.perf_counter()
        step_loss = 0.0
        for micro in range(micro_steps):
            model.require_backward_grad_sync = micro == micro_steps - 1  # DDP reads it in the forward pass
            loss = loss_of(model, step, micro) / micro_steps
            scaler.scale(loss).backward()
            step_loss += loss.detach()
        scaler.unscale_(optimizer)
        grad_norm = get_total_norm([p.grad for p in parameters])

        # What all ranks know: the mean loss, and whether any of them was asked to stop
        loss, stop_requests = world.sum(float(step_loss) / world.size, float(bool(stop)))
        stopping = stop_requests > 0
        overflow = scaler.is_enabled() and scaler.get_scale() > 1  # a bad norm then asks for a smaller loss scale only
        finite = math.isfinite(loss) and (overflow or math.isfinite(grad_norm))

        # The update; each block's gradient and update are measured where they are logged
        logging = due(step, config.log_interval) or row.keys() > {"step", "tokens"} or not finite
        if logging:
            row |= {"train/loss": loss, "grad_norm": grad_norm.item()}
            row |= {f"lr/{group['block']}": group["lr"] for group in optimizer.param_groups}
            row |= {f"grad_norm/{group['block']}": norm_of_gradients(group) for group in groups}
            before = [[p.detach().clone() for p in group["params"]] for group in groups]
        if finite:
            if config.grad_clip > 0:
                clip_grads_with_norm_(parameters, config.grad_clip, grad_norm)
            scaler.step(optimizer)
            progress["skipped_in_a_row"] = 0
        else:
            progress["skipped"] += 1
            progress["skipped_in_a_row"] += 1
        if config.qk_clip:
            clip_qk(raw_model, config.qk_clip if finite else math.inf, world.largest)
        if logging and finite:
            updates = zip(groups, before, strict=True)
            row |= {f"update_rms/{group['block']}": relative_update(group, old) for group, old in updates}
        before = None
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        progress["tokens"] += tokens_per_step
        if profiler:
            profiler.step()

        # One row a step
        now = time.perf_counter()
        seconds, steps_timed = seconds + now - started, steps_timed + 1
        if step == start_step + ETA_AFTER:
            eta_from = now
        if logging:
            tokens_per_s = tokens_per_step * steps_timed / seconds
            row |= {"tokens_per_s": tokens_per_s, "step_ms": 1000 * seconds / steps_timed}
            row |= {"mfu": peak and raw_model.flops_per_token() * tokens_per_s / (peak * world.size)}
            row |= {"mem_mb": peak_memory_mb(device)}
            timed = step - start_step - ETA_AFTER
            log(row, (now - eta_from) / timed * (config.max_iters - step - 1) if timed > 0 else None)
            seconds, steps_timed = 0.0, 0
        if not finite and (config.nan_policy == "stop" or progress["skipped_in_a_row"] == NAN_PATIENCE):
            status = 3
            say_not_finite(config, step, loss, grad_norm.item(), world)
            break

    if stopping:
        say(f"stopped by {stop.signal or 'a signal'}: saved at step {progress['step']}; --init_from=resume goes on")
    if profiler:
        profiler.stop()
    if logger:
        logger.finish(status)
    return status


def for_this_machine(config):
    """config with every "auto" of the machine decided, by what there is and never by timing."""
    device = auto_device(config.device)
    cuda = device.startswith("cuda")
    return replace(
        config,
        device=device,
        dtype=auto_dtype(config.dtype, device),
        compile=cuda if config.compile == "auto" else config.compile,
        backend=("nccl" if cuda else "gloo") if config.backend == "auto" else config.backend,
    )


def find_checkpoint(config, lock):
    """Path of the checkpoint to go on from, None to start from scratch; lock: the folder's, taken before looking.

    Raises UserError if there ought to be a checkpoint and is none, or if another run has the folder.
    """
    if config.init_from == "resume" and not manifests(config.out_dir):
        raise UserError(f"no checkpoint to resume in out_dir={config.out_dir}; --init_from=scratch starts a run")
    if lock:
        lock.acquire()
    path = newest_checkpoint(config.out_dir, warn) if config.init_from in ("resume", "auto") else None
    if path is None and config.init_from == "auto":
        print(f"no checkpoint in {config.out_dir}: starting from scratch")
    return path


def with_architecture(config, given, old, path):
    """config with the architecture of the weights in `path`; a key that was given and differs is a UserError.

    What the weights' own config does not say, as those from elsewhere or of old, has the default.
    """
    old = {**{key: getattr(TrainConfig, key) for key in ARCHITECTURE}, **old}
    for key in ARCHITECTURE:
        if key not in given or getattr(config, key) is None:
            config = replace(config, **{key: old[key]})
        elif getattr(config, key) != old[key]:
            raise UserError(f"{key}={getattr(config, key)}: {path} has {key}={old[key]}, and its weights fix that")
    return config.resolved()


def started_from(config, given, shape, say):
    """config for a run that starts from the weights that init_from names; block_size may be less than theirs."""
    if "block_size" in given:
        shape = {**shape, "block_size": min(config.block_size, shape["block_size"])}
    config = with_architecture(config, given, shape, config.init_from)
    say(f"starting from {config.init_from}: {config.model_type}, context of {config.block_size} tokens")
    return config


def continued(config, given, saved, path, say):
    """config for a run that goes on from `path`: the architecture is the checkpoint's, all else is the command's."""
    old = saved["config"]
    config = with_architecture(config, given, old, path)
    say(f"resuming from {path}")
    if config.arch_warmup and not old.get("arch_warmup"):
        raise UserError(f"arch_warmup=True: {path} began with all of its layers; expected --init_from=scratch")
    kept = ARCH_WARMUP if old.get("arch_warmup") else ()
    kept += AUTO_MULT if config.lr_mult == old["lr_mult"] == "auto" else ()
    for key in kept:
        if key in given and getattr(config, key) != old[key]:
            say(f"  {key} stays {old[key]}: the checkpoint holds what follows from it")
        config = replace(config, **{key: old[key]})
    if config.lr_mult == "auto" and not (saved.get("auto_mult") or config.eval_only):
        automult.check_ahead(config, saved["step"])
    for key, value in asdict(config).items():
        if key != "init_from" and key in old and value != old[key]:
            say(f"  {key} was {old[key]}, is {value}")
    return config


def set_up_torch(config):
    if config.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Compiled for a CPU, the embedding's gradient would be summed by threads in the order in which they come
    torch.use_deterministic_algorithms(config.deterministic or (config.compile and config.device == "cpu"))
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass over every new tensor


def compiled(model, warm_up, may_fail, world):
    """model under torch.compile, tried out on one backward pass; where that fails and may, the model as it is."""
    torch.compiler.reset()  # what it made for fewer layers; it gives up on a model that changes too often
    fast, failure = torch.compile(model), None
    try:
        warm_up(fast)
    except Exception as error:
        if not may_fail:
            raise
        failure = first_line(error)  # the error itself would keep this frame, and what its callers hold, alive
    if not world.any(failure):
        return fast
    if world.is_master:
        warn(f"torch.compile failed, going on without it: {failure or 'on another rank'}")
    return model


def to_device(x, device):
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def due(step, interval):
    return interval > 0 and step % interval == 0


@torch.no_grad()
def evaluate(model, split, config, world, precision, stop):
    """Mean loss, in nats per token, over the fixed windows; None if any process was asked to stop meanwhile."""
    starts = eval_starts(split, config.eval_iters * config.batch_size, config.block_size)
    total = 0.0
    model.eval()
    for first in range(0, config.eval_iters, world.size):
        if world.any(stop):
            total = None
            break
        if first + world.rank < config.eval_iters:
            begin = (first + world.rank) * config.batch_size
            x, y = split.windows(starts[begin : begin + config.batch_size], config.block_size)  # (B, T) each
            with precision:
                total += model(to_device(x, world.device), to_device(y, world.device)).item()
    model.train()
    return None if total is None else world.sum(total)[0] / config.eval_iters


def probe(config, split, world, number):
    """This process's part of a batch to measure on, whose windows are the same for any number of processes."""
    windows = list(range(world.rank, config.curvature_batch_size, world.size))
    x, y = probe_batch(split, config.seed, number, windows, config.block_size)  # (N, T) each
    positions = config.curvature_batch_size * config.block_size
    return Batch(to_device(x, world.device), to_device(y, world.device), windows, positions, number)


def live_curvature(config, model, split, world):
    """What measures the raw model in training."""
    batch = probe(config, split, world, 0)
    method = {"krylov": largest_eigenvalue, "power": power_iteration}[config.curvature_method]

    def solve(matvec, start):
        return method(matvec, start, config.curvature_hvps, tolerance=0.0)

    threshold = stability_threshold(config.optimizer, config.beta1)
    exclude, seed = config.curvature_exclude, config.seed
    return Live(model, batch, solve, threshold, exclude, seed, micro=config.batch_size, total=world.total)


def norm_of_gradients(group):
    return get_total_norm([p.grad for p in group["params"]]).item()


def relative_update(group, old):
    """RMS of a block's update over the RMS of its weights before it."""
    change = get_total_norm([p.detach() - q for p, q in zip(group["params"], old, strict=True)])
    return (change / get_total_norm(old)).item()


def say_not_finite(config, step, loss, grad_norm, world):
    if not world.is_master:
        return
    path = newest_checkpoint(config.out_dir, warn)
    advice = "a lower learning_rate or longer warmup_iters"
    if config.dtype == "float16":
        advice += ", dtype=bfloat16 or float32"
    if config.nan_policy == "stop":
        advice += ", or --nan_policy=skip"
    warn(
        f"step {step}: loss {loss}, gradient norm {grad_norm}: stopped before taking this step; "
        f"last good checkpoint: {path or 'none'}; try {advice}"
    )


def start_profiler(config):
    """Trace steps 5 to 7 of this process into out_dir/trace.json, for chrome://tracing or Perfetto."""
    profiler = torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=4, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda p: p.export_chrome_trace(os.path.join(config.out_dir, "trace.json")),
    )
    profiler.start()
    return profiler


def print_start(config, groups, plan, micro_steps, tokens_per_step, world, say):
    """The first things one wants from a log: the groups, and what one step is."""
    say(f"{'block':<6}{'tensors':>8}{'parameters':>14}{'peak lr':>10}{'decay':>7}")
    for group in groups:
        tensors, numbers = len(group["params"]), sum(p.numel() for p in group["params"])
        say(f"{group['block']:<6}{tensors:>8}{numbers:>14,}{group['lr']:>10.1e}{group['weight_decay']:>7.3g}")
    say(plan)
    say(f"optimizer: {config.optimizer}, {state_sizes(config, groups)}")
    say(
        f"a step: {tokens_per_step:,} tokens = {world.size} processes x {micro_steps} micro-steps "
        f"x {config.batch_size} sequences x {config.block_size} tokens"
    )
    say(f"on {config.device} in {config.dtype}, {'compiled' if config.compile else 'eager'}, into {config.out_dir}")


def state_sizes(config, groups):
    """What the optimizer's state takes, beside AdamW's, as words."""
    sizes = {name: state_bytes(name, groups, *optimizer_settings(config)) for name in {config.optimizer, "adamw"}}
    beside = f" (adamw: {sizes['adamw'] / 1e6:,.0f} MB)" if config.optimizer != "adamw" else ""
    return f"state {sizes[config.optimizer] / 1e6:,.0f} MB{beside}"


def optimizer_settings(config):
    """The betas, and the rows of a head in Q and K."""
    return (config.beta1, config.beta2), config.n_embd // config.n_head


def print_memory(config, model_config, groups, world):
    """The estimated peak of a step, and the batch size whose estimate is what is free now."""
    state = state_bytes(config.optimizer, groups, *optimizer_settings(config))
    held, free = resident_memory(world.device), free_memory(world.device)
    micro_steps, dtype = config.gradient_accumulation_steps // world.size, getattr(torch, config.dtype)

    def needed(batch_size):
        make = partial(Transformer, model_config, config.activation_checkpointing)
        tensors = training_memory(make, batch_size, config.block_size, micro_steps, world.device, dtype)
        return held + state + max(tensors)

    print(f"memory of a process, estimated: {needed(config.batch_size) / 1e6:,.0f} MB")
    if free:
        largest = largest_batch(needed, config.batch_size, free + held)
        print(f"free now: {free / 1e6:,.0f} MB, enough for batch_size={largest}, estimated")


def dry_run(config, model_config, data, world, lr_mult):
    """Everything short of training: what would run, how large it is, and whether the data is what it says it is."""
    print(json.dumps(asdict(config), indent=1))
    with torch.device("meta"):
        model = Transformer(model_config)
    groups = param_groups(model, config.learning_rate, lr_mult, config.weight_decay, config.wd_mult)
    counts = {group["block"]: sum(p.numel() for p in group["params"]) for group in groups}
    print(f"{'block':<6}{'tensors':>8}{'parameters':>14}{'peak lr':>10}")
    for group in groups:
        block, tensors = group["block"], len(group["params"])
        print(f"{block:<6}{tensors:>8}{counts[block]:>14,}{group['lr']:>10.1e}")
    print(f"{'all':<6}{sum(len(group['params']) for group in groups):>8}{sum(counts.values()):>14,}")
    print(f"tokens per step: {config.gradient_accumulation_steps * config.batch_size * config.block_size:,}")
    print(f"optimizer: {config.optimizer}, {state_sizes(config, groups)}")
    print_memory(config, model_config, groups, world)
    data.verify()
    print(f"data: {data.train.tokens:,} training and {data.val.tokens:,} validation tokens, all checked")


if __name__ == "__main__":
    with exit_on_user_error():
        try:
            status = main(config, given, flags, stop)
        finally:
            stop.ignore_more()
        sys.exit(status)
