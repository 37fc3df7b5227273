"""Figures of runs, studies and measurements, and of what configs ask for; needs no torch.

    python plot.py curves DIR [DIR ...] [--baseline=DIR]    # loss against step, with the terminal gap and the speedup
    python plot.py study DIR                                # loss against learning rate, curves with bands
    python plot.py budgets DIR DIR [DIR ...]                # of several studies: loss and lead against the tokens
    python plot.py sharpness DIR                            # of measure.py: each block's curvature
    python plot.py spectrum DIR                             # eigenvalues of each block, and distances between spectra
    python plot.py curvature DIR                            # largest eigenvalues against the step; also of a run
    python plot.py frequency DIR                            # loss from rare to frequent tokens, of one run or of two
    python plot.py lr FILE.py [--key=value ...]             # each block's learning rate against the step

COMMAND --help lists the keys of a command.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from blockwise import exit_on_user_error, figures
from blockwise.figures import budgets, curves, learning_rates
from blockwise.keys import PATH, Keys
from blockwise.settings import TrainConfig
from configurator import configure_command


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


COMMANDS = {
    "curves": Curves, "study": Folder, "budgets": Folders, "sharpness": Folder, "spectrum": Folder, "curvature": Folder,
    "frequency": Folder, "lr": OfConfig,
}  # fmt: skip


def main(argv):
    name, config, _, _ = configure_command(COMMANDS, argv, __doc__)
    if name == "curves":
        curves.draw(config.folders, config.baseline, config.out)
    elif name == "budgets":
        budgets.draw(config.folders, config.out)
    elif name == "lr":
        asked = [arg for arg in argv[1:] if not arg.startswith("--out=")]
        files = [Path(arg).stem for arg in asked if not arg.startswith("-")] or ["defaults"]
        out = Path(config.out or f"{files[-1]}_lr.png")
        learning_rates.draw(config.resolved_without_data(), " ".join(asked) or "defaults", out)
    else:
        figures.draw(name, config.folder)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
