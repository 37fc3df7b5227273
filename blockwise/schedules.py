"""Learning rate as a function of the step. Peak and floor belong to one block; time is the run's."""

import math

SCHEDULES = ("cosine", "linear", "wsd", "constant")


def due(step, interval):
    """Whether something that happens every `interval` steps (0: never) happens in this one."""
    return interval > 0 and step % interval == 0


def block_rate(config, step, lr_mult):
    """Learning rate at `step` of a block with this multiplier, under the keys of a run's config."""
    peak = config.learning_rate * lr_mult
    if not config.decay_lr:
        return peak
    return learning_rate(
        config.schedule,
        step,
        peak=peak,
        floor=config.min_lr * (lr_mult if config.min_lr_scaled else 1),
        warmup=config.warmup_iters * (lr_mult if config.warmup_scaled else 1),
        end=config.lr_decay_iters,
        decay=config.wsd_decay,
        base=config.learning_rate if config.wsd_boost == "paper" else peak,
    )


def schedule_notes(config):
    """One line for each thing that the learning rate will do and the keys do not seem to say. config: resolved."""
    if not config.decay_lr:
        return []
    notes, last = [], max(config.max_iters - 1, 0)
    multipliers = {"Norm": 1.0} if config.lr_mult == "auto" else config.lr_mult
    warmups = {block: config.warmup_iters * (x if config.warmup_scaled else 1) for block, x in multipliers.items()}
    if 0 < last < max(warmups.values()):
        block = max(warmups, key=warmups.get)
        share = block_rate(config, last, multipliers[block]) / (config.learning_rate * multipliers[block] or 1)
        scaled = f" times the multiplier of {block}" if config.warmup_scaled else ""
        notes.append(
            f"warmup_iters={config.warmup_iters}{scaled} is not over by max_iters={config.max_iters}: "
            f"the learning rate rises to {share:.3g} of its peak"
        )
    if config.schedule == "constant":
        return notes
    floors = {block: config.min_lr * (x if config.min_lr_scaled else 1) for block, x in multipliers.items()}
    low = [block for block, x in multipliers.items() if config.learning_rate * x < floors[block]]
    if low and config.warmup_iters <= last:
        notes.append(
            f"min_lr={config.min_lr:g} is above the peak learning rate of {', '.join(low)}: after the warmup it rises "
            f"to min_lr; lower min_lr, or set min_lr_ratio or min_lr_scaled"
        )
    # A warmup that lasts longer than the decay puts its end off, but in wsd
    end = max(config.lr_decay_iters, 0 if config.schedule == "wsd" else math.ceil(max(warmups.values())))
    if end < config.max_iters:
        notes.append(
            f"lr_decay_iters={config.lr_decay_iters} is below max_iters={config.max_iters}: from step {end} on "
            f"the learning rate stays at its floor, min_lr={config.min_lr:g}"
        )
    elif config.lr_decay_iters > config.max_iters and config.warmup_iters <= last:
        notes.append(
            f"lr_decay_iters={config.lr_decay_iters} is above max_iters={config.max_iters}: the learning rate of Norm "
            f"ends at {block_rate(config, last, multipliers['Norm']):.3g}, not at its floor, min_lr={config.min_lr:g}"
        )
    return notes


def learning_rate(schedule, step, *, peak, floor, warmup, end, decay=1 / 3, base=None):
    """Learning rate of step `step`, counted from 0.

    warmup: steps of linear rise, (step + 1) / (warmup + 1) of the peak, so that no step is wasted at 0.
    schedule: what follows. "cosine" and "linear" fall to `floor` at step `end` and stay there; "constant" stays at
        the peak; "wsd" (warmup, stable, decay) stays there until its last share `decay` of `end`, then falls linearly.
    base: under "wsd", the rate from which that last fall starts (None: the peak). The block comes down to it linearly
        in the second half of the stable time: with a third of decay, boosted until end/3, at the base by 2 end/3, the
        rule of the code released with arXiv 2502.19002.
    """
    if step < warmup:
        ramp = peak * (step + 1) / (warmup + 1)
        if schedule != "wsd":
            return ramp
        # its corners do not wait for a longer warmup
        return min(ramp, learning_rate("wsd", step, peak=peak, floor=floor, warmup=0, end=end, decay=decay, base=base))
    if schedule == "constant":
        return peak
    if step >= end:
        return floor
    if schedule == "wsd":
        base = peak if base is None else base
        fall = end - end * decay
        if step >= fall:
            return line(step, fall, end, base, floor)
        return line(step, fall / 2, fall, peak, base) if step > fall / 2 else peak
    if schedule == "linear":
        return line(step, warmup, end, peak, floor)
    progress = (step - warmup) / (end - warmup)
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)


def rate_lambdas(groups, schedule="cosine", *, floor, warmup, end, decay=1 / 3):
    """For torch's LambdaLR over the groups of `param_groups`: every group from its own peak down to one common floor.

        scheduler = LambdaLR(optimizer, rate_lambdas(optimizer.param_groups, floor=6e-5, warmup=100, end=1000))

    The paper's rule, which the floors of other schedulers (eta_min, min_lr) do not give: they scale, or pull together,
    the groups in other ways. groups: their `lr` are the peaks; floor: a learning rate; the rest: see `learning_rate`.
    Raises ValueError for a schedule that there is not, a floor that is negative or above a peak, and a warmup that
    outlasts the decay.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: expected one of {', '.join(SCHEDULES)}")
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor={floor}: expected a learning rate")
    if warmup > end and schedule != "constant":
        raise ValueError(f"warmup={warmup}: expected at most end={end}")
    peaks = [group["lr"] for group in groups]
    if any(0 < peak < floor for peak in peaks):
        raise ValueError(f"floor={floor}: expected at most the lowest peak, {min(peak for peak in peaks if peak)}")

    def share_of(peak):
        times = {"peak": peak, "floor": floor, "warmup": warmup, "end": end, "decay": decay}
        return lambda step: learning_rate(schedule, step, **times) / peak if peak else 0.0

    return [share_of(peak) for peak in peaks]


def line(step, start, end, high, low):
    """From `high` at step `start` to `low` at step `end`."""
    share = (end - step) / (end - start)
    return share * high + (1 - share) * low  # exact at both ends
