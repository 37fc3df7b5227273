"""lr_mult=auto: a run measures the sharpness of its own blocks, once, and sets its multipliers by it.

The paper (arXiv 2502.19002) gives flat blocks a higher rate than sharp ones, and tuned how much by hand: on a LLaMA of
0.25B parameters its 10/8/6/4 for Emb/QK/FFN/VO are the ratios of average sharpness, Norm's over the block's, to the
powers 0.64 to 0.80. Here the power is one number for all blocks. docs/curvature.md has the noise of the measurement.
"""

import math

from blockwise import NotFinite, UserError
from blockwise.blocks import BLOCKS

PROBES = 128  # batches of curvature_batch_size sequences, with labels drawn from the model


def multipliers(sharpness, power, most, step):
    """{block: clip((S_Norm / S_block)^power, 1, most)} for {block: its average sharpness S}.

    Raises NotFinite where a sharpness is not, as of a model that has blown up; UserError where one is 0, as that of
    QK in a context of a single token. Both name the step.
    """
    for block, value in sharpness.items():
        problem = f"step {step}: cannot set multipliers: sharpness of {block} is {value}"
        if not math.isfinite(value):
            raise NotFinite(f"{problem}; a lower learning_rate may help")
        if value <= 0:
            raise UserError(problem)
    logs = {block: power * (math.log(sharpness["Norm"]) - math.log(value)) for block, value in sharpness.items()}
    return {block: min(math.exp(min(max(log, 0.0), 700.0)), most) for block, log in logs.items()}


def multipliers_at(config, step, measured):
    """{block: multiplier of its learning rate in this step}, under the keys of a run's config.

    measured: {block: multiplier} of lr_mult=auto, None before auto_mult_step. From 1 in that step they rise linearly,
    over as many steps again.
    """
    if config.lr_mult != "auto":
        return config.lr_mult
    risen = min(max(step / config.auto_mult_step - 1, 0.0), 1.0)
    return {block: 1 + risen * (mult - 1) for block, mult in (measured or dict.fromkeys(BLOCKS, 1.0)).items()}


class LRMultipliers:
    """The multipliers of a run, step by step: lr_mult as it is, or measured once where it is "auto"."""

    def __init__(self, config, checkpoint):
        """A run that is resumed keeps what it measured.

        Raises UserError where a resumed run has passed auto_mult_step without a measurement, or never reaches it.
        """
        self.config = config
        auto = config.lr_mult == "auto"
        self.measured = checkpoint["auto_mult"] if checkpoint and auto else None
        if checkpoint and auto and not (self.measured or config.eval_only):
            step, last = checkpoint["step"], config.max_iters - 1
            expected = f"{step} to {last}: the run continues from step {step}; or numbers for lr_mult"
            config.check("auto_mult_step", step <= config.auto_mult_step <= last, expected)

    def at(self, step):
        """{block: multiplier}"""
        return multipliers_at(self.config, step, self.measured)

    def final(self):
        """The multipliers that the run ends with, as far as is known."""
        return self.at(math.inf)

    def measure_at(self, step):
        """Whether they are measured in this step."""
        return step == self.config.auto_mult_step

    def measure(self, sharpness_of, asked_to_stop):
        """Set the multipliers by the sharpness of what trains now; returns the part of a row with both.

        Without an effect, and {}, where it was asked to stop, which it looks for between two probes.
        sharpness_of: number of a probe -> {block: sharpness}; asked_to_stop: alike on all processes.
        """
        config, samples = self.config, []
        for number in range(PROBES):
            if asked_to_stop():
                return {}
            samples.append(sharpness_of(number))
        sharpness = {block: math.fsum(sample[block] for sample in samples) / PROBES for block in samples[0]}
        power, most = config.auto_mult_power, config.auto_mult_max
        self.measured = multipliers(sharpness, power, most, config.auto_mult_step)
        row = {f"sharpness/{block}": value for block, value in sharpness.items()}
        return row | {f"lr_mult/{block}": mult for block, mult in self.measured.items()}

    def describe(self):
        """What lr_mult=auto has measured, or when it will; nothing for numbers, which the table of groups shows."""
        start = self.config.auto_mult_step
        if self.config.lr_mult != "auto":
            return ""
        if self.measured is None:
            return f"lr_mult=auto: every multiplier is 1 until they are measured in step {start}"
        found = ", ".join(f"{block} {mult:.3g}" for block, mult in self.measured.items())
        reached = f"reached in step {2 * start}" if 2 * start <= self.config.max_iters else "never reached in full"
        return f"lr_mult=auto: {found}, measured in step {start}, {reached}"

    def state_dict(self):
        return {"auto_mult": self.measured}


def as_arguments(measured):
    """Multipliers as arguments for train.py."""
    return " ".join(f"--lr_mult.{block}={mult:.3g}" for block, mult in measured.items())
