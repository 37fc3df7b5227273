"""What measure.py spectrum found: eigenvalues of each block, and the distances between their spectra."""

import re
from itertools import cycle

import numpy as np

from blockwise.blocks import layer_of
from blockwise.figures.style import measurements, start_figure


def figures(folder):
    """spectrum.png and spectrum_distances.png of the newest step measured."""
    for steps in measurements(folder, "spectrum").values():
        newest, kinds = steps[-1], {}  # 'attn.q_proj' -> {layer: one}: a panel each, its layers from dark to light
        for name, spectrum in newest["blocks"].items():
            kinds.setdefault(re.sub(r"^blocks\.\d+\.|\.weight$", "", name), {})[layer_of(name)] = spectrum
        figure, panels = start_figure(len(kinds))
        for axes, (kind, layers) in zip(panels, sorted(kinds.items(), key=lambda item: item[0] != "full"), strict=True):
            draw_spectra(axes, layers, newest["edges"])
            axes.set_title({"full": "the whole model"}.get(kind, kind), fontsize="medium")
        figure.suptitle(f"Hessian, step {newest['step']}: {newest['probes']} probes, {newest['positions']:,} tokens")
        yield "spectrum.png", figure
        if newest["js"]["mean"] is not None:
            yield "spectrum_distances.png", distances(newest["js"])


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


def distances(js):
    """Jensen-Shannon distance between the spectra of each two blocks."""
    figure, (axes,) = start_figure()
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
    return figure
