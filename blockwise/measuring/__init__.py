"""What measure.py does: choose the models, measure each one, write and print what was found."""

import json
from pathlib import Path

from tqdm import tqdm

from blockwise.files import write_text


def progress_bar(world, **about):
    """A tqdm bar, shown by rank 0 and on a terminal only."""
    return tqdm(disable=None if world.is_master else True, mininterval=2, **about)


def counted(matvec, progress):
    """The matvec, each product of which moves the bar on."""

    def product(v):
        progress.update()
        return matvec(v)

    return product


def write_json(config, name, measured, indent=1):
    """Write what was measured of a step into NAME_STEP.json in out_dir."""
    path = Path(config.out_dir) / f"{name}_{measured['step']:08d}.json"
    write_text(path, json.dumps(measured, indent=indent) + "\n")
