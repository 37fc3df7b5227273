"""Learning rate as a function of the step. Peak and floor belong to one block; time is the run's."""

import math


def learning_rate(schedule, step, *, peak, floor, warmup, end):
    """Learning rate of step `step`, counted from 0.

    warmup: steps of linear rise, (step + 1) / (warmup + 1) of the peak, so that no step is wasted at 0.
    schedule: what follows. "cosine" falls to `floor` at step `end` and stays there; "constant" stays at the peak.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    if step >= end:
        return floor
    progress = (step - warmup) / (end - warmup)
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)
