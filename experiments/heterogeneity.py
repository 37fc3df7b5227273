"""Do blocks' Hessian spectra differ, and does SGD suffer for it? The small experiments of arXiv 2402.16788, section 2.

    python experiments/heterogeneity.py
    python experiments/heterogeneity.py --parts=mlp,cnn --data=mnist
    python experiments/heterogeneity.py --parts=transformer --out_dir=out/demo/blockwise

mlp: a ReLU network of four layers whose outputs are each multiplied by c, and cnn: four convolutions and an output
layer, on scikit-learn's digits (1,437 images of 8 x 8 to train on, 360 to test) or MNIST. Of both the spectra of every
weight matrix and the distances between them at initialization, and SGD (momentum 0.9) against Adam, each at the best
rate of its own sweep in half decades: by the training loss of the first seed, in the paper's grid from 1e-4 to 1e-1,
and beyond it as long as the best lies at an end. transformer: the same spectra of a checkpoint's embedding, output
layer and the matrices of its middle layer, and of that model at initialization.

Distances: Jensen-Shannon, base 2 and square root, in [0, 1], of spectra over their tenth largest eigenvalue
(blockwise/curvature/spectra.py). The paper's formula is not published and its values exceed 1, so they cannot be
compared. All in float64, with the same Lanczos steps, probes and (about) the same number of examples.
"""

import copy
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from blockwise import UserError, exit_on_user_error
from configurator import configure

PART = Literal["mlp", "cnn", "transformer"]


@dataclass
class HeterogeneityConfig:
    """The keys of heterogeneity.py."""

    parts: Annotated[list[PART], "which models"] = field(default_factory=lambda: list(get_args(PART)))
    data: Annotated[Literal["digits", "mnist"], "scikit-learn's digits, or MNIST through datasets"] = "digits"
    scales: Annotated[list[int], "c, the factor of the MLP"] = field(default_factory=lambda: [1, 2, 4, 8, 15])
    train_steps: Annotated[int, "of batches of 128; an epoch of MNIST is 469"] = 300
    seeds: Annotated[int, "of weights and batches"] = 3
    lanczos_steps: Annotated[int, "per probe; a smaller matrix: its size"] = 50
    probes: Annotated[int, "random vectors per matrix, at least 2"] = 4
    examples: Annotated[int, "images, or tokens, whose mean loss is differentiated"] = 256
    out_dir: Annotated[str, "folder of a run of train.py, for transformer"] = "out/demo/blockwise"
    data_dir: Annotated[str | None, "where its data set lies (None: as the run says)"] = None
    results: Annotated[str, "folder of heterogeneity.json and the figures"] = "out/experiments"

    def __post_init__(self):
        for key, least in (("train_steps", 1), ("seeds", 1), ("lanczos_steps", 1), ("probes", 2), ("examples", 1)):
            if getattr(self, key) < least:
                raise UserError(f"{key}={getattr(self, key)}: expected at least {least}")
        if not self.scales or min(self.scales) < 1:
            raise UserError(f"scales={self.scales}: expected numbers from 1 on")


if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        config, given, _ = configure(HeterogeneityConfig, sys.argv[1:], __doc__)

import numpy as np
import torch
import torch.nn.functional as F
from figures import STYLES, panels, save, table
from torch import nn

from blockwise.checkpoint import load_checkpoint, require_checkpoint
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.curvature.spectra import Spectrum, js_distances, js_noise, quadrature
from blockwise.loader import Dataset, eval_starts
from blockwise.logger import first_line
from model import ModelConfig, Transformer

PAPER_GRID = range(-8, -1)  # exponents of the root of 10: 1e-4 to 1e-1
WIDEST = range(-24, 3)


class MLP(nn.Module):
    """Widths 300, 128, 64; the output of each of the four layers, before its ReLU, times `scale`."""

    def __init__(self, shape, classes, scale):
        super().__init__()
        widths = [math.prod(shape), 300, 128, 64, classes]
        self.scale = scale
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x, y=None):
        """Images (N, 1, H, W) -> logits (N, classes); given labels (N,), their mean cross-entropy."""
        x = x.flatten(1)
        for layer in self.layers:
            x = self.scale * layer(x.relu() if layer is not self.layers[0] else x)
        return x if y is None else F.cross_entropy(x, y)


class CNN(nn.Module):
    """Four 3 x 3 convolutions of 8, 8, 16 and 16 channels, pooled in between, and an output layer on their mean."""

    def __init__(self, shape, classes):
        super().__init__()
        channels = [shape[0], 8, 8, 16, 16]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))
        self.output = nn.Linear(channels[-1], classes)

    def forward(self, x, y=None):
        """Images (N, 1, H, W) -> logits (N, classes); given labels (N,), their mean cross-entropy."""
        for i, convolution in enumerate(self.convolutions):
            x = convolution(F.avg_pool2d(x, 2) if i == 2 else x).relu()
        x = self.output(x.mean((2, 3)))
        return x if y is None else F.cross_entropy(x, y)


def images(name):
    """Images (N, 1, H, W), mean 0 and deviation 1, and labels (N,), to train and to test on. May raise UserError."""
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        x, y = x[order].reshape(-1, 1, 8, 8), y[order]
        parts = (x[:1437], y[:1437], x[1437:], y[1437:])
    else:
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # no line for each try
        try:
            from datasets import load_dataset

            loaded = load_dataset("ylecun/mnist")
            splits = [loaded[split].with_format("numpy")[:] for split in ("train", "test")]
        except Exception as error:  # of the network, of the hub, of the package: none is of ours
            raise UserError(f"MNIST cannot be reached ({first_line(error)}): --data=digits needs no network") from None
        parts = [part for split in splits for part in (np.stack(split["image"])[:, None], split["label"])]
    x, y, test_x, test_y = (torch.as_tensor(np.asarray(part)) for part in parts)
    mean, deviation = x.double().mean(), x.double().std()
    x, test_x = (((part - mean) / deviation).float() for part in (x, test_x))
    return x, y.long(), test_x, test_y.long()


# Spectra


def spectra(model, batch, names, config):
    """{name: Spectrum} of the Hessian of each of these parameters alone."""
    model = copy.deepcopy(model).double()
    parameters, found = dict(model.named_parameters()), {}
    for number, name in enumerate(names):
        products = HessianVectorProduct(model, batch, [parameters[name]])
        steps = min(config.lanczos_steps, products.size)
        generator = torch.Generator().manual_seed(number)
        found[name] = quadrature(products, products.size, steps, config.probes, generator, dtype=torch.float64)
    return found


def distances(found):
    """What is said of a model's spectra, as plain data; js0 is None where one of them cannot be normalised."""
    every = list(found.values())
    facts = {"blocks": list(found), "largest": [spectrum.magnitude for spectrum in every], "js0": None}
    if not all(spectrum.has_ten for spectrum in every):
        return facts
    values, js0 = js_distances(every)
    return {**facts, "js0": js0, "distances": values.tolist(), "noise": js_noise(every)}


def classifier_batch(data, config):
    x, y = data[0][: config.examples].double(), data[1][: config.examples]
    return Batch(x, y, list(range(len(x))), len(x))


def matrices(model):
    return [name for name, p in model.named_parameters() if p.ndim > 1]


# SGD against Adam


def train(model, data, optimizer, rate, steps, seed):
    """(training loss, test accuracy) after so many steps; a run that diverges has the loss inf."""
    x, y, test_x, test_y = data
    if optimizer == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(model.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        loss = model(x[rows], y[rows])
        if not torch.isfinite(loss):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss = model(x, y).item()
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    return (loss if math.isfinite(loss) else math.inf), accuracy


def seeded(make, seed):
    torch.manual_seed(seed)
    return make()


def compare(make, data, optimizer, config):
    """{"own": at the best of its own sweep, "paper": at the best of the paper's grid}, each over all seeds."""

    def run(exponent, seed):
        rate = 10 ** (exponent / 2)
        return train(seeded(make, seed), data, optimizer, rate, config.train_steps, seed)

    swept = {exponent: run(exponent, 0) for exponent in PAPER_GRID}
    found = {"paper": min(swept, key=lambda e: swept[e][0])}
    while True:
        best = min(swept, key=lambda e: swept[e][0])
        beyond = {min(swept): best - 1, max(swept): best + 1}.get(best)
        if beyond is None or beyond not in WIDEST:
            break
        swept[beyond] = run(beyond, 0)
    found["own"] = best
    every = {e: [swept[e], *(run(e, seed) for seed in range(1, config.seeds))] for e in set(found.values())}
    return {
        grid: {
            "rate": 10 ** (e / 2),
            "losses": [loss for loss, _ in every[e]],
            "accuracies": [accuracy for _, accuracy in every[e]],
        }
        for grid, e in found.items()
    } | {"sweep": {f"{10 ** (e / 2):.2g}": swept[e] for e in sorted(swept)}}


def classifier(make, data, config):
    """Spectra at initialization, by seed, and both optimizers; (plain data, spectra of the first seed)."""
    batch = classifier_batch(data, config)
    each = [spectra(model, batch, matrices(model), config) for model in (seeded(make, s) for s in range(config.seeds))]
    facts = {"seeds": [distances(one) for one in each]}
    return facts | {name: compare(make, data, name, config) for name in ("SGD", "Adam")}, each[0]


# The transformer


def transformer(config):
    """({"initialization": ..., "trained": ...} as plain data, the same as spectra). Raises UserError: no checkpoint."""
    saved = load_checkpoint(require_checkpoint(config.out_dir))
    shape, run = ModelConfig.of(saved["model_config"]), saved["config"]
    fresh, trained = seeded(lambda: Transformer(shape), run["seed"]), Transformer(shape)
    trained.load_state_dict(saved["model"])
    T = min(shape.block_size, config.examples)
    split = Dataset.open(config.data_dir or run["data_dir"], run["dataset"], T).train
    windows = max(1, config.examples // T)
    x, y = split.sequences(eval_starts(split, windows, T), T)
    batch = Batch(x, y, list(range(windows)), windows * T)
    middle = f"blocks.{shape.n_layer // 2}."
    names = [n for n in matrices(fresh) if n.startswith(("tok_emb", "lm_head", middle))]
    found = {name: spectra(m, batch, names, config) for name, m in (("initialization", fresh), ("trained", trained))}
    return {name: distances(one) for name, one in found.items()}, found


def transformer_if_there(config):
    """The same, or one line and nothing where the run that nobody named is not there."""
    try:
        return transformer(config)
    except UserError as error:
        if config.parts == ["transformer"]:
            raise
        print(f"transformer: left out, {error}")
        return {}, {}


# Tables and figures


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
    figure, (left, right) = panels(1, 2)
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
    save(figure, folder, "heterogeneity.png")


def short(name):
    """A matrix's name where space is short: 'blocks.2.attn.q_proj.weight' -> 'q_proj'."""
    parts = name.removesuffix(".weight").split(".")
    return f"{parts[-2].removesuffix('s')} {int(parts[-1]) + 1}" if parts[-1].isdigit() else parts[-1]


def draw_spectra(shown, folder):
    """Each model's spectra over their tenth largest eigenvalue, blurred."""
    figure, grid = panels(-(-len(shown) // 2), min(2, len(shown)), (5, 3.4))
    x = np.linspace(-2, 5, 1401)
    for axes, (title, found) in zip(grid, shown.items(), strict=False):
        colours = shades(len(found))
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
    for axes in grid[len(shown) :]:
        axes.remove()
    save(figure, folder, "heterogeneity_spectra.png")


def shades(count):
    """From dark to light, so that order survives in grey."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.85, count))


def draw_distances(shown, folder):
    """Heatmaps of the distances between a model's matrices, on one scale."""
    shown = {title: one for title, one in shown.items() if one["js0"] is not None}
    if not shown:
        return
    figure, grid = panels(-(-len(shown) // 2), min(2, len(shown)), (4.6, 4))
    for axes, (title, one) in zip(grid, shown.items(), strict=False):
        values, names = np.array(one["distances"]), [short(name) for name in one["blocks"]]
        image = axes.imshow(values, cmap="Greys", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(visible=False)
        axes.set_title(f"{title}: JS0 = {one['js0']:.2f}, noise up to {one['noise']:.2f}", fontsize=9)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    for axes in grid[len(shown) :]:
        axes.remove()
    figure.colorbar(image, ax=grid[: len(shown)], label="JS distance (0: equal, 1: disjoint)", shrink=0.7)
    save(figure, folder, "heterogeneity_js.png")


def main(config, given=()):
    folder, started = Path(config.results), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    data = images(config.data) if {"mlp", "cnn"} & set(config.parts) else None
    found, shown, heatmaps = {}, {}, {}

    def done(what):
        print(f"{what}: done after {time.perf_counter() - started:.0f} s", flush=True)

    if data is not None:
        shape, classes = data[0].shape[1:], int(data[1].max()) + 1
        makers = {f"MLP, c={c}": lambda c=c: MLP(shape, classes, c) for c in config.scales if "mlp" in config.parts}
        makers |= {"CNN": lambda: CNN(shape, classes)} if "cnn" in config.parts else {}
        for name, make in makers.items():
            found[name], first = classifier(make, data, config)
            done(name)
            if name in ("CNN", f"MLP, c={config.scales[0]}", f"MLP, c={config.scales[-1]}"):
                shown[name], heatmaps[name] = first, found[name]["seeds"][0]
    if "transformer" in config.parts:
        found["transformer"], each = transformer(config) if "out_dir" in given else transformer_if_there(config)
        shown |= {f"transformer, {name}": one for name, one in each.items()}
        heatmaps |= {f"transformer, {name}": one for name, one in found["transformer"].items()}
        done("transformer")
    report(found)
    conclude(found)
    (folder / "heterogeneity.json").write_text(json.dumps({"config": asdict(config), **found}, indent=1) + "\n")
    if "mlp" in config.parts:
        draw_sgd_and_adam(found, folder)
    draw_spectra(shown, folder)
    draw_distances(heatmaps, folder)
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(config, given))
