"""Measure checkpoints: curvature, and loss by token. Under torchrun, the processes share each batch.

    python measure.py sharpness --out_dir=out/demo/blockwise                      # by block type, with error bars
    python measure.py sharpness --out_dir=out/demo/blockwise --checkpoints=all    # its evolution in training
    python measure.py sharpness --out_dir=out/demo/blockwise --estimator=hessian --batches=8
    python measure.py sharpness --out_dir=out/demo/blockwise --suggest            # the multipliers that follow from it
    python measure.py spectrum --out_dir=out/demo/blockwise --layers=0,3          # eigenvalues of every matrix
    python measure.py spectrum --out_dir=out/demo/blockwise --blocks=QK,VO,FFN    # or by block type
    python measure.py curvature --out_dir=out/demo/blockwise --checkpoints=all    # largest eigenvalues, and the threshold
    python measure.py frequency --out_dir=out/demo/blockwise --against=out/demo/adamw     # loss, from rare to frequent tokens

JSON and figures go into out_dir; COMMAND --help lists the keys of a command. The sharpness of a block is the trace of
its diagonal block over its number of parameters; its spectrum is that of its diagonal block of the Hessian.
"""

import sys
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from blockwise import UserError, exit_on_user_error, print0, warn
from blockwise.blocks import BLOCKS
from blockwise.keys import ABOVE_0, PATH, Keys, Range
from configurator import configure_command


@dataclass
class MeasureConfig(Keys):
    """The keys that every command of measure.py has."""

    # fmt: off
    out_dir: Annotated[str, "folder of the run, and where the results go", PATH] = "out"
    ema: Annotated[bool, "measure the moving average of the weights instead (train with --ema_decay)"] = False
    checkpoints: Annotated[Literal["newest", "all"], "newest checkpoint, or all that are kept (train with --keep_checkpoints=-1)"] = "newest"
    batches: Annotated[int, "number of batches; the loss is the mean over all of them", Range(1)] = 1
    batch_size: Annotated[int, "sequences per batch, over all processes", Range(1)] = 16
    micro_batch: Annotated[int | None, "sequences per forward pass on one process (None: all of its share)", Range(1)] = None
    dataset: Annotated[str | None, "data set (None: the run's)", PATH] = None
    data_dir: Annotated[str | None, "folder of data sets (None: the run's)", PATH] = None
    block_size: Annotated[int | None, "tokens per sequence (None: the model's context)", Range(1)] = None
    seed: Annotated[int, "random seed", Range(0)] = 0
    device: Annotated[str, "cpu, cuda, cuda:1 (auto: cuda if there, else cpu)"] = "auto"
    # fmt: on


@dataclass
class SharpnessConfig(MeasureConfig):
    """The keys of measure.py sharpness."""

    command = "sharpness"
    flags = MappingProxyType({"suggest": "print the multipliers that lr_mult=auto sets by this sharpness"})
    # fmt: off
    estimator: Annotated[Literal["fisher", "hessian", "empirical"], "fisher: Gauss-Newton-Bartlett; hessian: Hutchinson; empirical: Fisher of per-sequence gradients"] = "fisher"
    labels: Annotated[Literal["sampled", "data"], "labels of the fisher estimator: sampled from the model; or the data's, which gives no Fisher"] = "sampled"
    batches: Annotated[int, "independent batches; at least 2 for an error that includes the choice of data", Range(1)] = 4
    draws: Annotated[int, "draws of labels, or of Hutchinson's signs, per batch", Range(1)] = 4
    auto_mult_max: Annotated[float, "largest multiplier that --suggest prints; the smallest is 1", Range(1)] = 10.0
    auto_mult_power: Annotated[float, "exponent p of the multipliers (sharpness of Norm / sharpness of the block)^p that --suggest prints", ABOVE_0] = 0.7
    # fmt: on

    @property
    def kind(self):
        return "data_labels" if (self.estimator, self.labels) == ("fisher", "data") else self.estimator


@dataclass
class SpectrumConfig(MeasureConfig):
    """The keys of measure.py spectrum."""

    command = "spectrum"
    # fmt: off
    blocks: Annotated[list[str] | None, "block types (QK), each one block, or patterns of tensor names (*.q_proj.*), each tensor one block (None: every matrix)"] = None
    layers: Annotated[list[int] | None, "layers to measure, counted from 0 (None: the whole model)", Range(0)] = None
    full: Annotated[bool, "also the spectrum of the whole model"] = True
    lanczos_steps: Annotated[int, "Lanczos steps per probe; of a block with fewer parameters, as many as these", Range(1)] = 100
    probes: Annotated[int, "random vectors that Lanczos starts from", Range(1)] = 10
    batch_size: Annotated[int, "sequences per batch, over all processes", Range(1)] = 4
    dtype: Annotated[Literal["float64", "float32"], "precision of the model; float32 blurs eigenvalues below a millionth of the largest"] = "float64"
    # fmt: on


@dataclass
class CurvatureConfig(MeasureConfig):
    """The keys of measure.py curvature."""

    command = "curvature"
    # fmt: off
    exclude: Annotated[list[Literal[BLOCKS]], "blocks that the preconditioned eigenvalue leaves out: --exclude=Emb,Head"] = field(default_factory=list)
    products: Annotated[int, "maximum of Hessian-vector products per eigenvalue", Range(1)] = 300
    tolerance: Annotated[float, "residual over eigenvalue at which it counts as converged", Range(0, 1, "()")] = 1e-3
    # fmt: on


@dataclass
class FrequencyConfig(MeasureConfig):
    """The keys of measure.py frequency."""

    command = "frequency"
    # fmt: off
    against: Annotated[str | None, "folder of another run, whose loss is subtracted (None: only this one's)", PATH] = None
    batches: Annotated[int | None, "batches of fixed validation sequences (None: those that the run was evaluated on)", Range(1)] = None
    # fmt: on


COMMANDS = {cls.command: cls for cls in (SharpnessConfig, SpectrumConfig, CurvatureConfig, FrequencyConfig)}
if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        _, config, _, flags = configure_command(COMMANDS, sys.argv[1:], __doc__)

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from blockwise import figures
from blockwise.data.mixture import open_dataset
from blockwise.distributed import World, auto_device
from blockwise.files import write_text
from blockwise.measuring.curvature import Curvature
from blockwise.measuring.frequency import Frequency
from blockwise.measuring.models import models_of
from blockwise.measuring.sharpness import Sharpness
from blockwise.measuring.spectrum import Spectrum
from model import Transformer


def main(config, flags=()):
    device = auto_device(config.device)
    with World.start(device, "nccl" if device.startswith("cuda") else "gloo") as world:
        models, run = models_of(config, Transformer)
        keys = ("dataset", "data_dir", "block_size")
        config = replace(config, **{key: getattr(config, key) or run[key] for key in keys})
        config.check("block_size", config.block_size <= run["block_size"], f"at most {run['block_size']}, the context")
        data = open_dataset(config.data_dir, config.dataset, config.block_size)
        if data.note:
            print0(data.note)
        command = {
            "sharpness": partial(Sharpness, suggest="suggest" in flags),
            "spectrum": Spectrum,
            "curvature": Curvature,
            "frequency": partial(Frequency, transformer=Transformer),
        }[config.command](config, data, run, world)
        for step, load in models:
            model, checkpoint = load(data)
            started = time.perf_counter()
            try:
                found = command.measure(step, model.to(world.device), checkpoint)
            except FloatingPointError:
                raise UserError(f"step {step}: the curvature is not finite") from None
            if world.is_master:
                about = {"step": step, "dataset": config.dataset, "seed": config.seed}
                content = about | found | {"seconds": time.perf_counter() - started}
                name = "_".join(filter(None, (config.command, found.get("kind"), f"{step:08d}")))
                write_text(Path(config.out_dir, f"{name}.json"), json.dumps(content, indent=1) + "\n")
                print(f"step {step}, ", end="")
                print(*command.report(found), sep="\n")
        if world.is_master:
            draw(config)
    return 0


def draw(config):
    """The figures of a command. What was measured is on the disk: a failure is a warning."""
    try:
        figures.draw(config.command, config.out_dir)
    except Exception as error:
        warn(f"no figures: {error}" if isinstance(error, UserError) else f"no figures: {type(error).__name__}: {error}")


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(config, flags))
