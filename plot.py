"""Figures of runs, studies and measurements, and of what configs ask for; needs no torch.

    python plot.py curves DIR [DIR ...] [--baseline=DIR]    # loss against step, with the terminal gap and the speedup
    python plot.py study DIR                                # loss against learning rate, curves with bands
    python plot.py budgets DIR DIR [DIR ...]                # of several studies: loss and lead against the tokens
    python plot.py sharpness DIR                            # of measure.py: each block's curvature
    python plot.py spectrum DIR                             # eigenvalues of each block, and distances between spectra
    python plot.py curvature DIR                            # largest eigenvalues against the step; also of a run
    python plot.py frequency DIR                            # loss from rare to frequent tokens, of one run or of two
    python plot.py lr FILE.py [--key=value ...]             # each block's learning rate against the step
    python plot.py rules [FILE.py] [--key=value ...]        # each block's rate against the width, by every rule

COMMAND --help lists the keys of a command.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from blockwise import exit_on_user_error
from blockwise.figures import budgets, curvature, curves, frequency, learning_rates, rules, sharpness, spectrum, study
from blockwise.keys import PATH, Keys
from blockwise.settings import TrainConfig
from configurator import configure, configure_command


@dataclass
class Folders(Keys):
    """The keys of a figure of several folders."""

    words = "folders"
    folders: Annotated[list[str], "folders of runs or of studies", PATH] = field(default_factory=list)
    out: Annotated[str | None, "file of the figure (None: the command's name in the first folder)", PATH] = None


@dataclass
class Curves(Folders):
    """The keys of plot.py curves."""

    baseline: Annotated[str | None, "folder of another run, a baseline whatever its config says", PATH] = None


@dataclass
class Folder(Keys):
    """The keys of a figure that is drawn into the folder of what it shows."""

    words = "folder"
    folder: Annotated[str | None, "folder of a run, of a study or of what measure.py wrote", PATH] = None


@dataclass
class OfConfig(TrainConfig):
    """The keys of train.py, and where its figure goes."""

    out: Annotated[str | None, "file of the figure (None: the config file's name and the command's)", PATH] = None


# Where the rules for rates meet
ANCHOR = OfConfig(
    model_type="llama", n_layer=4, n_embd=128, n_head=4, vocab_size=4096, block_size=128, batch_size=8,
    gradient_accumulation_steps=1,
)  # fmt: skip


def lr(args):
    """Draw the learning rate of every block against the step, under the config that train.py would make of `args`."""
    config, name = of_config(args, None)
    asked = " ".join(arg for arg in args if not arg.startswith("--out=")) or "defaults"
    learning_rates.draw(config.resolved_without_data(), asked, Path(config.out or f"{name}_lr.png"))


def rate_rules(args):
    """Draw every block's rate against the width by every rule, under the config that train.py would make of `args`."""
    config, name = of_config(args, ANCHOR)
    config.check("vocab_size", config.vocab_size, "a number, which rules need")
    rules.draw(replace(config.resolved(), lr_rule="paper"), Path(config.out or f"{name}_rules.png"))


def of_config(args, start):
    """(OfConfig, the last config file's stem). start: the keys' values where no file is named (None: the defaults)."""
    files = [Path(arg).stem for arg in args if not arg.startswith("-")]
    config, _, _ = configure(OfConfig, args, __doc__, start=None if files else start)
    return config, files[-1] if files else "defaults"


COMMANDS = {
    "curves": (Curves, lambda config: curves.draw(config.folders, config.baseline, config.out)),
    "study": (Folder, lambda config: study.draw(config.folder)),
    "budgets": (Folders, lambda config: budgets.draw(config.folders, config.out)),
    "sharpness": (Folder, lambda config: sharpness.draw(config.folder)),
    "spectrum": (Folder, lambda config: spectrum.draw(config.folder)),
    "curvature": (Folder, lambda config: curvature.draw(config.folder)),
    "frequency": (Folder, lambda config: frequency.draw(config.folder)),
    "lr": (OfConfig, lr),
    "rules": (OfConfig, rate_rules),
}


def main(argv):
    if argv[:1] in (["lr"], ["rules"]):  # they read their arguments themselves: a named file changes what is default
        return COMMANDS[argv[0]][1](argv[1:])
    name, config, _, _ = configure_command({name: keys for name, (keys, _) in COMMANDS.items()}, argv, __doc__)
    COMMANDS[name][1](config)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
