"""What measure.py sharpness found: each block's average, its distribution, layer by block, and over the steps."""

import numpy as np

from blockwise.figures.style import COLOURS, measurements, start_figure

# What a kind of sharpness is called in a figure
KINDS = {
    "fisher": "Fisher (Gauss-Newton-Bartlett)", "hessian": "Hessian (Hutchinson)",
    "empirical": "empirical Fisher (per sequence)", "data_labels": "squared gradient on the data's labels",
}  # fmt: skip
ORDER = ("Emb", "Head", "QK", "FFN", "VO", "Norm")  # the paper's, from flat to sharp; it has no Head
BLOCK_COLOURS = dict(zip(("Emb", "QK", "FFN", "VO", "Norm", "Head"), COLOURS, strict=True))
BLOCK_MARKERS = dict(zip(ORDER, "oPs^Dv", strict=True))


def in_order(blocks):
    return [block for block in ORDER if block in blocks]


def figures(folder):
    """sharpness_KIND.png of each kind, and sharpness_KIND_evolution.png over the steps."""
    for name, steps in measurements(folder, "sharpness").items():
        newest, title = steps[-1], KINDS[steps[-1]["kind"]]
        figure, (bars, density, layers) = start_figure(3)
        draw_bars(bars, newest)
        draw_density(density, newest)
        draw_layers(figure, layers, newest)
        batches = f"{newest['batches']} batches of {newest['positions']:,} tokens"
        figure.suptitle(f"{title}, step {newest['step']}: {batches}")
        yield f"{name}.png", figure
        if len(steps) > 1:
            figure, (axes,) = start_figure()
            draw_evolution(axes, steps)
            axes.set_title(title)
            yield f"{name}_evolution.png", figure


def draw_bars(axes, measured):
    """Average sharpness with its standard error; the geometric mean as a dotted line across the bar."""
    names = in_order(measured["blocks"])
    rows = [measured["blocks"][block] for block in names]
    style = {"capsize": 4, "color": [BLOCK_COLOURS[block] for block in names], "edgecolor": "black"}
    axes.bar(range(len(rows)), [row["mean"] for row in rows], yerr=[row["error"] or 0 for row in rows], **style)
    for at, row in enumerate(rows):
        if row["geometric"] and measured["kind"] != "hessian":  # whose single entries are noise, of either sign
            axes.plot([at - 0.4, at + 0.4], [row["geometric"]] * 2, color="black", linestyle=":", linewidth=2)
    axes.set_xticks(range(len(names)), names)
    axes.set(yscale="log", ylabel="average sharpness (per parameter)")
    dotted = "" if measured["kind"] == "hessian" else "; dotted: geometric mean"
    axes.set_title(f"mean and standard error{dotted}", fontsize="medium")


def draw_density(axes, measured):
    """How the diagonal's entries above zero are spread, each block's share by log10."""
    edges = measured["log10_bins"]
    for block in in_order(measured["blocks"]):
        axes.stairs(measured["blocks"][block]["histogram"], edges, label=block, color=BLOCK_COLOURS[block])
    seen = np.flatnonzero(np.sum([row["histogram"] for row in measured["blocks"].values()], axis=0) > 1e-4)
    if len(seen):
        axes.set_xlim(edges[seen[0]] - 1, edges[seen[-1] + 1] + 1)
    axes.set(xlabel="log10 of a parameter's diagonal curvature", ylabel="share of the block", title="distribution")
    axes.legend(frameon=False)


def draw_layers(figure, axes, measured):
    """Layer by block, on a logarithmic scale of grey."""
    from matplotlib.colors import LogNorm

    names = in_order({row["block"] for row in measured["layers"]})
    rows = sorted({row["layer"] for row in measured["layers"]}, key=lambda layer: -1 if layer is None else layer)
    table = np.full((len(rows), len(names)), np.nan)
    for row in measured["layers"]:
        table[rows.index(row["layer"]), names.index(row["block"])] = row["mean"] if row["mean"] > 0 else np.nan
    image = axes.imshow(table, norm=LogNorm(), cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(rows)), ["outside" if row is None else str(row) for row in rows])
    axes.set(ylabel="layer", title="average sharpness, layer by block")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes)


def draw_evolution(axes, steps):
    """Each block's average sharpness against the step."""
    for block in in_order({block for measured in steps for block in measured["blocks"]}):
        points = [(measured["step"], measured["blocks"][block]) for measured in steps if block in measured["blocks"]]
        x, y = [step for step, _ in points], [row["mean"] for _, row in points]
        error = [row["error"] or 0 for _, row in points]
        axes.errorbar(x, y, error, label=block, color=BLOCK_COLOURS[block], marker=BLOCK_MARKERS[block], capsize=3)
    axes.set(yscale="log", xlabel="step", ylabel="average sharpness (per parameter)")
    axes.legend(frameon=False)
