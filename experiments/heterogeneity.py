"""Do blocks' Hessian spectra differ, and does SGD suffer for it? The small experiments of arXiv 2402.16788, section 2.

    python experiments/heterogeneity.py
    python experiments/heterogeneity.py --parts=mlp,cnn --data=mnist
    python experiments/heterogeneity.py --parts=transformer --out_dir=out/kjv_bytes

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

from heterogeneity_report import conclude, draw_distances, draw_sgd_and_adam, draw_spectra, report

from blockwise import UserError, exit_on_user_error
from blockwise.keys import PATH, Keys, Range
from configurator import configure

PART = Literal["mlp", "cnn", "transformer"]


@dataclass
class HeterogeneityConfig(Keys):
    """The keys of heterogeneity.py."""

    parts: Annotated[list[PART], "which models"] = field(default_factory=lambda: list(get_args(PART)))
    data: Annotated[Literal["digits", "mnist"], "scikit-learn's digits, or MNIST through datasets"] = "digits"
    scales: Annotated[list[int], "c, the factor of the MLP", Range(1)] = field(default_factory=lambda: [1, 2, 4, 8, 15])
    train_steps: Annotated[int, "steps with batches of 128; an epoch of MNIST is 469", Range(1)] = 300
    seeds: Annotated[int, "seeds of weights and batches", Range(1)] = 3
    lanczos_steps: Annotated[int, "steps per probe; a smaller matrix: its size", Range(1)] = 50
    probes: Annotated[int, "random vectors per matrix", Range(2)] = 4
    examples: Annotated[int, "images, or tokens, whose mean loss is differentiated", Range(1)] = 256
    out_dir: Annotated[str, "folder of a run of train.py, for transformer", PATH] = "out/kjv_bytes"
    data_dir: Annotated[str | None, "folder of its data set (None: as the run says)", PATH] = None
    results: Annotated[str, "folder of heterogeneity.json and the figures", PATH] = "out/experiments"

    def __post_init__(self):
        super().__post_init__()
        self.check("scales", self.scales, "one or more")


if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        configure(HeterogeneityConfig, sys.argv[1:], __doc__)

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from blockwise.checkpoint import load_checkpoint, require_checkpoint
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.curvature.spectra import js_distances, js_noise, quadrature
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


def main(argv):
    config, given, _ = configure(HeterogeneityConfig, argv, __doc__)
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


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
