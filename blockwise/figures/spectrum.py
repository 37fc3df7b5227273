"""What measure.py spectrum found: eigenvalues of each block, and the distances between their spectra."""

import re
from itertools import cycle
from pathlib import Path

import numpy as np

from blockwise.blocks import layer_of
from blockwise.figures.style import measurements, reading, start_figure, write


def draw(folder):
    """spectrum.png and spectrum_distances.png of the newest step measured, spectrum_evolution.png over several."""
    folder, kinds = Path(folder), {}  # 'attn.q_proj' -> {layer: one}: a panel each, its layers from dark to light
    with reading(f"{folder}: its spectrum_*.json"):
        steps = measurements(folder, "spectrum")
        newest = steps[-1]
        for name, spectrum in newest["blocks"].items():
            kinds.setdefault(re.sub(r"^blocks\.\d+\.|\.weight$", "", name), {})[layer_of(name)] = spectrum
        figure, panels = start_figure(len(kinds))
        for axes, (kind, layers) in zip(panels, sorted(kinds.items(), key=lambda item: item[0] != "full"), strict=True):
            draw_spectra(axes, layers, newest["edges"])
            axes.set_title({"full": "the whole model"}.get(kind, kind), fontsize="medium")
        figure.suptitle(f"Hessian, step {newest['step']}: {newest['probes']} probes, {newest['positions']:,} tokens")
        write(figure, folder / "spectrum.png")
        if newest["js"]["mean"] is not None:
            figure, (axes,) = start_figure()
            draw_distances(figure, axes, newest["js"])
            write(figure, folder / "spectrum_distances.png")
        if len(steps) > 1:
            figure, (left, right) = start_figure(2)
            draw_evolution(left, right, steps)
            write(figure, folder / "spectrum_evolution.png")


def draw_spectra(axes, layers, edges):
    """Share of a block's eigenvalues in each bin, in units of its tenth largest: what distances compare.

    edges: of the bins but the outermost two, which have no other end. The axis is linear around zero.
    """
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.85, max(2, len(layers))))
    ends = [10 * edges[0], *edges, 10 * edges[-1]]
    for (layer, spectrum), shade, style in zip(layers.items(), shades, cycle(["-", "--", "-.", ":"]), strict=False):
        if spectrum["histogram"] is not None:
            label = f"layer {layer}" if layer is not None else None
            axes.stairs(spectrum["histogram"], ends, label=label, color=shade, linestyle=style, linewidth=1.3)
    axes.set_xscale("symlog", linthresh=1e-6, linscale=0.3)
    axes.set_xticks([-1, -1e-2, -1e-4, 0, 1e-4, 1e-2, 1], ["-1", "-0.01", "-1e-4", "0", "1e-4", "0.01", "1"])
    axes.minorticks_off()
    axes.set(yscale="log", ylim=(1e-6, 2), xlim=(-30, 30))
    axes.set(xlabel="eigenvalue / tenth largest", ylabel="share of the eigenvalues")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def draw_distances(figure, axes, js):
    """Jensen-Shannon distance between the spectra of each two blocks."""
    names, table = [name.removeprefix("blocks.").removesuffix(".weight") for name in js["blocks"]], js["distances"]
    figure.set_size_inches(2 + max(5, 0.45 * len(names)), 1 + max(4.5, 0.42 * len(names)))
    image = axes.imshow(table, cmap="viridis", vmin=0)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.grid(visible=False)
    if len(names) <= 20:
        middle = np.max(table) / 2
        for (row, column), value in np.ndenumerate(table):
            shade = "white" if value < middle else "black"
            axes.annotate(f"{value:.2f}", (column, row), ha="center", va="center", fontsize=6, color=shade)
    noise = "" if js["noise"] is None else f"; between halves of a block's own probes: {js['noise']:.3f}"
    axes.set_title(f"JS0, mean over pairs: {js['mean']:.3f}{noise}", fontsize="medium")
    figure.colorbar(image, ax=axes, label="Jensen-Shannon distance (base 2)")


def draw_evolution(left, right, steps):
    """Against the step: the mean distance; the extreme eigenvalues over all blocks."""
    x, style = [measured["step"] for measured in steps], {"color": "black", "marker": "o"}
    compared = [measured for measured in steps if measured["js"]["mean"] is not None]
    left.plot([measured["step"] for measured in compared], [measured["js"]["mean"] for measured in compared], **style)
    left.set(xlabel="step", ylabel="JS0 (base 2)", ylim=(0, None), title="mean distance between blocks")
    for key, pick, line in (("largest", max, "-"), ("smallest", min, "--")):
        y = [pick(spectrum[key] for spectrum in measured["blocks"].values()) for measured in steps]
        right.plot(x, y, linestyle=line, label=key, **style)
    right.set(yscale="symlog", xlabel="step", ylabel="eigenvalue", title="extremes over all blocks")
    right.legend(frameon=False)
