"""What all figures share: colours, what measure.py wrote, how a figure begins and how it is saved."""

import json
from contextlib import contextmanager

from blockwise import UserError

# Okabe and Ito's colours, which differ in lightness too; the baseline is black and dashed
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


@contextmanager
def reading(folder, files):
    """Context that turns the errors of files which do not hold what a figure shows into a UserError that names them."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{folder} holds no {files} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{folder}: its {files} is broken: {error!r}") from None


def measurements(folder, command):
    """{name: what measure.py wrote into NAME_STEP.json, in the order of steps}, for all names of a command."""
    found = {}
    for path in sorted(folder.glob(f"{command}_*.json")):
        with reading(folder, path.name):  # a step is what every one of them has
            content = json.loads(path.read_text())
            found.setdefault(path.stem.rpartition("_")[0], []).append({"step": content["step"], **content})
    return found


def start_figure(panels=1, columns=2):
    """A figure and its axes as a list, `columns` in a row."""
    from matplotlib.figure import Figure

    columns = min(panels, columns)
    rows = -(-panels // columns)
    figure = Figure((8 if columns == 1 else 11, 5 if rows == 1 else 4 * rows), dpi=150, layout="constrained")
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
