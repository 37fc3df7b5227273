"""What all figures share: colours, what measure.py wrote, how a figure begins and how it is saved."""

import json
from contextlib import contextmanager

from blockwise import UserError

# Okabe and Ito's colours, which differ in lightness too; the baseline is black and dashed
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


@contextmanager
def reading(what):
    """Context that turns the errors of files which do not hold what a figure shows into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{what} is broken: {error!r}") from None


def measurements(folder, command, required=True):
    """What `measure.py COMMAND` wrote into a folder, by step. Raises UserError for a broken file, or for none."""
    measured = []
    for path in sorted(folder.glob(f"{command}_*.json")):
        with reading(path):
            measured.append(json.loads(path.read_text()))
    if required and not measured:
        raise UserError(f"{folder} holds no measurement: expected what measure.py {command} writes")
    return sorted(measured, key=lambda content: content["step"])


def start_figure(panels=1, columns=2, size=None):
    """A figure and its axes as a list, `columns` in a row. size: width and height of a panel in inches."""
    from matplotlib.figure import Figure

    columns = min(panels, columns)
    rows = -(-panels // columns)
    shape = (8 if columns == 1 else 11, 5 if rows == 1 else 4 * rows)
    if size:
        shape = (size[0] * columns, size[1] * rows)
    figure = Figure(shape, dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for axes in grid.flat[panels:]:
        axes.remove()
    return figure, list(grid.flat[:panels])


def literal(text):
    """Text as matplotlib shows it unchanged: a dollar would begin a formula."""
    return text.replace("$", r"\$")


def write(figure, out):
    """Save a figure, in the format of the ending of `out`. Raises UserError for an unknown ending."""
    if out.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise UserError(f"--out={out}: expected the name of a .png, .pdf or .svg file")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"wrote {out}")
