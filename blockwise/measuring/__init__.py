"""What measure.py does: choose the models, measure each one, say what was found.

Each command is a class, made once from (config, data, run, world): data, the Dataset to measure on; run, the run's
config. `measure(step, model, checkpoint)` is called for every model, on every rank, and returns what goes into the JSON
file; `report(found)` yields the lines that are printed of it. FloatingPointError: the curvature is not finite.
"""

from tqdm import tqdm


def progress_bar(world, **about):
    """A tqdm bar, shown by rank 0 and on a terminal only, and gone at the end."""
    return tqdm(disable=None if world.is_master else True, mininterval=2, leave=False, **about)
