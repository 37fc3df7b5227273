"""What heterogeneity.py prints and draws."""

import math

import numpy as np
from figures import PANEL, STYLES, table

from blockwise.figures.style import start_figure, write


def spread(values, form="{:.3f}"):
    """Mean, and the range where there are several."""
    low, mean, high = (form.format(v) for v in (min(values), float(np.mean(values)), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def js_words(facts):
    """JS0, its noise, and how far apart the largest eigenvalues lie, over a list of `distances`."""
    known = [one for one in facts if one["js0"] is not None]
    ratios = [max(one["largest"]) / min(one["largest"]) if min(one["largest"]) else math.inf for one in facts]
    if not known:
        return "not defined: fewer than ten eigenvalues", "-", spread(ratios, "{:.3g}")
    undefined = f"; {len(facts) - len(known)} not defined" if len(known) < len(facts) else ""
    noise = f"{np.mean([one['noise'] for one in known]):.2f}"
    return spread([one["js0"] for one in known]) + undefined, noise, spread(ratios, "{:.3g}")


def report(found):
    print("\nDistances between the spectra of a model's matrices: mean over pairs; of several seeds mean and range\n")
    rows = [(name, *js_words(one["seeds"])) for name, one in found.items() if "seeds" in one]
    rows += [(f"transformer, {name}", *js_words([one])) for name, one in found.get("transformer", {}).items()]
    table(("model", "JS0", "of it noise, at most", "largest eigenvalue, highest over lowest matrix"), rows)
    rows = []
    for name, one in ((name, one) for name, one in found.items() if "seeds" in one):
        for optimizer in ("SGD", "Adam"):
            own, paper = one[optimizer]["own"], one[optimizer]["paper"]
            rows.append((
                name, optimizer, f"{own['rate']:.2g}", spread(own["losses"], "{:.2g}"), spread(own["accuracies"]),
                f"{paper['rate']:.2g}", spread(paper["losses"], "{:.2g}"), spread(paper["accuracies"]),
            ))  # fmt: skip
    if rows:
        print("SGD and Adam, each at the best rate of its own sweep, and at the best of the paper's grid\n")
        head = ("model", "optimizer", "rate", "training loss", "test accuracy")
        table((*head, "rate within 1e-4 to 1e-1", "training loss", "test accuracy"), rows)


def conclude(found):
    """The paper's claims against what was measured."""

    def js0(one):
        known = [facts["js0"] for facts in one if facts["js0"] is not None]
        return f"{np.mean(known):.2f}" if known else "not defined"

    mlps = {name: one for name, one in found.items() if name.startswith("MLP")}
    if mlps:
        print("The paper: the distance between the MLP's layers grows with c, from 0.001 at 1 to 353 at 8. Here:")
        print("  " + "; ".join(f"{name.split()[1]}: {js0(one['seeds'])}" for name, one in mlps.items()))
    for grid, where in (("paper", "within its grid"), ("own", "each at its own best rate")) if mlps else ():
        print(f"The paper: Adam's lead over SGD in test accuracy grows with c. Here, {where}:")
        leads = [np.mean(o["Adam"][grid]["accuracies"]) - np.mean(o["SGD"][grid]["accuracies"]) for o in mlps.values()]
        print("  " + "; ".join(f"{name.split()[1]}: {lead:+.3f}" for name, lead in zip(mlps, leads, strict=True)))
    models = {f"transformer, {name}": [one] for name, one in found.get("transformer", {}).items()}
    models |= {"CNN": found["CNN"]["seeds"]} if "CNN" in found else {}
    if models:
        print("The paper: JS0 is 0.1 in CNNs, and 15 to 286 in transformers. Here, by the bounded distance:")
        print("  " + "; ".join(f"{name}: {js0(one)}" for name, one in models.items()))


def draw_sgd_and_adam(found, folder):
    """Distances, and test accuracy, against the MLP's scale."""
    mlps = {int(name.split("=")[1]): one for name, one in found.items() if name.startswith("MLP")}
    figure, (left, right) = start_figure(2, size=PANEL)
    points = [(c, one["js0"], one["noise"]) for c in mlps for one in mlps[c]["seeds"] if one["js0"] is not None]
    if points:
        c, js0, noise = zip(*points, strict=True)
        left.plot(c, js0, "o", color="black", label="between layers, one seed each")
        left.plot(c, noise, "x", color="#D55E00", label="noise of the estimate, at most")
    if "CNN" in found:
        known = [one["js0"] for one in found["CNN"]["seeds"] if one["js0"] is not None]
        left.axhline(np.mean(known), label="CNN", **STYLES[1]) if known else None
    left.set(xscale="log", ylim=(0, 1), xlabel="c (factor on each layer's output)", ylabel="JS distance", title="MLP")
    lines = [(optimizer, grid) for grid in ("own", "paper") for optimizer in ("SGD", "Adam")]
    for style, (optimizer, grid) in zip(STYLES, lines, strict=True):
        runs = [mlps[c][optimizer][grid]["accuracies"] for c in mlps]
        label = f"{optimizer}, {'best rate' if grid == 'own' else 'best of 1e-4 to 1e-1'}"
        means = [np.mean(one) for one in runs]
        around = np.abs([[m - min(one), max(one) - m] for m, one in zip(means, runs, strict=True)]).T
        width = 2.5 if grid == "own" else 1.2
        right.errorbar(list(mlps), means, around, label=label, capsize=3, linewidth=width, **style)
    right.set(xscale="log", xlabel="c (factor on each layer's output)", ylabel="test accuracy", title="MLP")
    for axes in (left, right):
        axes.set_xticks(list(mlps), [str(c) for c in mlps])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8) if axes.get_legend_handles_labels()[0] else None
    write(figure, folder / "heterogeneity.png")


def short(name):
    """A matrix's name where space is short: 'blocks.2.attn.q_proj.weight' -> 'q_proj'."""
    parts = name.removesuffix(".weight").split(".")
    return f"{parts[-2].removesuffix('s')} {int(parts[-1]) + 1}" if parts[-1].isdigit() else parts[-1]


def draw_spectra(shown, folder):
    """Each model's spectra over their tenth largest eigenvalue, blurred."""
    import matplotlib.pyplot as plt

    from blockwise.curvature.spectra import Spectrum

    figure, grid = start_figure(len(shown), size=(5, 3.4))
    x = np.linspace(-2, 5, 1401)
    for axes, (title, found) in zip(grid, shown.items(), strict=True):
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(found)))  # order survives in grey
        for i, (name, spectrum) in enumerate(found.items()):
            if spectrum.has_ten:
                nodes = [values / spectrum.largest(10) for values in spectrum.nodes]
                scaled = Spectrum(spectrum.n, nodes, spectrum.weights)
                dashes = ("-", "--", ":", "-.")[i % 4]
                axes.plot(x, scaled.density(x, 0.05), dashes, color=colours[i], label=short(name), linewidth=1.4)
        axes.set(yscale="log", ylim=(1e-6, 20), title=title)
        axes.set(xlabel="eigenvalue over the tenth largest", ylabel="density")
        if axes.lines:
            axes.legend(frameon=False, fontsize=7, ncols=2)
        else:
            axes.text(1.5, 5e-3, "fewer than ten eigenvalues", ha="center")
    write(figure, folder / "heterogeneity_spectra.png")


def draw_distances(shown, folder):
    """Heatmaps of the distances between a model's matrices, on one scale."""
    shown = {title: one for title, one in shown.items() if one["js0"] is not None}
    if not shown:
        return
    figure, grid = start_figure(len(shown), size=(4.6, 4))
    for axes, (title, one) in zip(grid, shown.items(), strict=True):
        values, names = np.array(one["distances"]), [short(name) for name in one["blocks"]]
        image = axes.imshow(values, cmap="Greys", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(visible=False)
        axes.set_title(f"{title}: JS0 = {one['js0']:.2f}, noise up to {one['noise']:.2f}", fontsize=9)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, ax=grid, label="JS distance (0: equal, 1: disjoint)", shrink=0.7)
    write(figure, folder / "heterogeneity_js.png")
