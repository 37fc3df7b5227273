"""What measure.py does: choose the models, measure each one, write and print what was found."""

from tqdm import tqdm


def progress_bar(world, **about):
    """A tqdm bar, shown by rank 0 and on a terminal only."""
    return tqdm(disable=None if world.is_master else True, mininterval=2, **about)
