"""What all figures share: colours, how a figure begins, how it is written."""

from blockwise import UserError

# Okabe and Ito's colours, which differ in lightness too; the baseline is black and dashed
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def start_figure(panels=1, columns=2, size=None):
    """A figure and its axes as a list, `columns` in a row. size: width and height of a panel in inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(panels, columns)
    rows = -(-panels // columns)
    shape = (8 if columns == 1 else 11, 5 if rows == 1 else 4 * rows)
    if size:
        shape = (size[0] * columns, size[1] * rows)
    figure, grid = plt.subplots(rows, columns, figsize=shape, dpi=150, layout="constrained", squeeze=False)
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
