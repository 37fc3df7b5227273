"""Measure the curvature of checkpoints. Also under torchrun: the processes share each batch.

    python measure.py sharpness --out_dir=out/demo/blockwise                      # by block type, with error bars
    python measure.py sharpness --out_dir=out/demo/blockwise --checkpoints=all    # and how it evolved
    python measure.py sharpness --out_dir=out/demo/blockwise --estimator=hessian --batches=8
    python measure.py sharpness --out_dir=out/demo/blockwise --suggest            # the multipliers that follow from it
    python measure.py spectrum --out_dir=out/demo/blockwise --layers=0,3          # eigenvalues, matrix by matrix
    python measure.py spectrum --out_dir=out/demo/blockwise --blocks=QK,VO,FFN    # or block type by block type
    python measure.py curvature --out_dir=out/demo/blockwise --checkpoints=all    # largest eigenvalues, and the threshold

JSON and figures go into out_dir; COMMAND --help lists a command's keys. Sharpness of a block: trace of its diagonal
curvature over its number of parameters. A block's spectrum is that of its own diagonal block of the Hessian.
"""

import sys
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from blockwise import UserError, exit_on_user_error
from blockwise.blocks import BLOCKS
from configurator import close, configure, did_you_mean


@dataclass
class MeasureConfig:
    """The keys that every command of measure.py has."""

    flags = MappingProxyType({})

    out_dir: Annotated[str, "folder of the run, and where the results go"] = "out"
    init_from: Annotated[str, "resume: checkpoints in out_dir; or a model in Hugging Face's format, hf:DIR_OR_ID"] = "resume"
    checkpoints: Annotated[Literal["newest", "all"], "all: every checkpoint that is kept (train with --keep_checkpoints=-1)"] = "newest"
    batches: Annotated[int, "how many batches"] = 1
    batch_size: Annotated[int, "windows of a batch, over all processes"] = 16
    micro_batch: Annotated[int | None, "windows at a time on one process (None: all of its own)"] = None
    dataset: Annotated[str | None, "data set (None: the run's)"] = None
    data_dir: Annotated[str | None, "where data sets lie (None: the run's)"] = None
    block_size: Annotated[int | None, "tokens of a window (None: the model's context)"] = None
    seed: Annotated[int, "of windows, and of all else that is drawn"] = 0
    device: Annotated[str, "cpu, cuda, cuda:1 (auto: cuda if there, else cpu)"] = "auto"

    def __post_init__(self):
        for key in ("batches", "draws", "probes", "lanczos_steps", "products", "batch_size", "micro_batch", "block_size"):
            if getattr(self, key, None) is not None and getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)}: expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}: expected at least 0 and below 2**63")


@dataclass
class SharpnessConfig(MeasureConfig):
    """The keys of measure.py sharpness."""

    command = "sharpness"
    flags = MappingProxyType({"suggest": "print the multipliers that lr_mult=auto sets by this sharpness"})
    estimator: Annotated[Literal["fisher", "hessian", "empirical"], "fisher: Gauss-Newton-Bartlett; hessian: Hutchinson; empirical: Fisher of per-sequence gradients"] = "fisher"
    labels: Annotated[Literal["sampled", "data"], "of fisher: drawn from the model; data: the same formula on the data's, which is no Fisher"] = "sampled"
    split_tied: Annotated[bool, "measure the input and the output use of a tied embedding apart, as Emb and Head"] = False
    batches: Annotated[int, "independent batches; two at least for an error that holds for other data"] = 4
    draws: Annotated[int, "of labels, or of Hutchinson's signs, per batch"] = 4
    auto_mult_max: Annotated[float, "of suggest: largest multiplier; the smallest is 1"] = 10.0
    auto_mult_power: Annotated[float, "of suggest: p of (sharpness of Norm / sharpness of the block)^p"] = 0.7

    def __post_init__(self):
        super().__post_init__()
        if self.auto_mult_max < 1:
            raise UserError(f"auto_mult_max={self.auto_mult_max}: expected at least 1")
        if self.auto_mult_power <= 0:
            raise UserError(f"auto_mult_power={self.auto_mult_power}: expected above 0")

    @property
    def kind(self):
        """What is measured, in a word: names files."""
        return "data_labels" if (self.estimator, self.labels) == ("fisher", "data") else self.estimator


@dataclass
class SpectrumConfig(MeasureConfig):
    """The keys of measure.py spectrum."""

    command = "spectrum"
    blocks: Annotated[list[str] | None, "block types (QK), each one block, or patterns of tensors' names (*.q_proj.*), each tensor a block (None: the matrices)"] = None
    layers: Annotated[list[int] | None, "only what lies in these layers, counted from 0 (None: everything)"] = None
    full: Annotated[bool, "the spectrum of the whole model besides"] = True
    lanczos_steps: Annotated[int | None, "products per probe (None: 100, and in a block of fewer parameters as many as these)"] = None
    probes: Annotated[int, "random vectors that Lanczos starts from"] = 10
    batches: Annotated[int, "of batch_size windows; the loss is the mean over all of them"] = 1
    batch_size: Annotated[int, "windows of a batch, over all processes"] = 4
    dtype: Annotated[Literal["float64", "float32"], "of the model; float32 blurs the eigenvalues below a millionth of the largest"] = "float64"


@dataclass
class CurvatureConfig(MeasureConfig):
    """The keys of measure.py curvature."""

    command = "curvature"
    preconditioner: Annotated[Literal["auto", "adam", "none"], "adam: of its second moments; none; auto: as the run's optimizer has it"] = "auto"
    exclude: Annotated[list[Literal[BLOCKS]], "blocks that the preconditioned eigenvalue leaves out: --exclude=Emb,Head"] = field(default_factory=list)
    batches: Annotated[int, "of batch_size windows; the loss is the mean over all of them"] = 1
    products: Annotated[int, "Hessian-vector products of an eigenvalue, at most"] = 300
    tolerance: Annotated[float, "residual over eigenvalue at which it has converged"] = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance={self.tolerance}: expected above 0 and below 1")


COMMANDS = {cls.command: cls for cls in (SharpnessConfig, SpectrumConfig, CurvatureConfig)}
if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        command, *words = [*sys.argv[1:], "--help"]
        if command not in (*COMMANDS, "--help", "-h"):
            near = did_you_mean(close(command, COMMANDS))
            raise UserError(f"unknown command {command!r}: expected {' or '.join(COMMANDS)}, then --key=value{near}")
        cls = COMMANDS.get(command, MeasureConfig)
        config, _, flags = configure(cls, sys.argv[2:] if command in COMMANDS else ["--help"], __doc__, cls.flags)

import copy
import json
import subprocess
import time
import zlib
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

from blockwise.archwarmup import layers_at, put_to_work
from blockwise.automult import as_words, multipliers, multipliers_at
from blockwise.blocks import blocks_of, param_groups
from blockwise.checkpoint import load_checkpoint, load_optimizer, need_checkpoint, whole_checkpoints
from blockwise.curvature import (
    LOG10_BINS,
    Batch,
    Diagonal,
    HessianProducts,
    Preconditioned,
    data_diagonal,
    empirical_fisher_diagonal,
    fisher_diagonal,
    hessian_diagonal,
    keyed,
    layer_of,
    scaling,
    untied,
)
from blockwise.distributed import World, auto_device
from blockwise.files import write_text
from blockwise.hardware import free_memory
from blockwise.huggingface.load import Pretrained
from blockwise.huggingface.names import is_hugging_face
from blockwise.loader import Dataset, probe_batch
from blockwise.logger import warn
from blockwise.optimizers import build_optimizer, preconditioner, stability_threshold
from blockwise.schedules import block_rate
from blockwise.spectrum import bin_edges, js_distances, js_noise, largest_eigenvalue, power_iteration, quadrature
from model import ModelConfig, Transformer

LANCZOS_STEPS = 100  # per probe, where a block has as many parameters
POWER_PRODUCTS = 100  # of power iteration, which checks the eigenvalue of largest magnitude


def main(config, flags=()):
    device = auto_device(config.device)
    with World.start(device, "nccl" if device.startswith("cuda") else "gloo") as world:
        models, run = checkpoints_of(config) if config.init_from == "resume" else pretrained(config)
        keys = ("dataset", "data_dir", "block_size")
        config = replace(config, **{key: getattr(config, key) or run.get(key) for key in keys})
        if config.dataset is None:
            raise UserError("dataset is not given: expected the data set that the model shall be measured on")
        if "suggest" in flags and config.split_tied:
            raise UserError("split_tied=True: expected False with --suggest, since one matrix has one learning rate")
        if config.block_size > run["block_size"]:
            context = f"the model's context, {run['block_size']}"
            raise UserError(f"block_size={config.block_size}: expected at most {context}")
        data = Dataset.open(config.data_dir or "data", config.dataset, config.block_size)
        sharpness_too = partial(sharpness, suggest="suggest" in flags)
        measure = {"sharpness": sharpness_too, "spectrum": spectrum, "curvature": curvature}[config.command]
        measure(config, models, data.train, world)
        if world.is_master:
            plot = Path(__file__).parent / "plot.py"
            subprocess.run([sys.executable, str(plot), config.command, config.out_dir], check=True)
    return 0


def checkpoints_of(config):
    """([(step, function that gives the model and its checkpoint), ...], the run's config)"""
    newest = need_checkpoint(config.out_dir, warn)
    paths = [newest] if config.checkpoints == "newest" else whole_checkpoints(config.out_dir, warn)

    def make(path):
        saved = load_checkpoint(path)
        model = Transformer(ModelConfig(**saved["model_config"]))
        model.load_state_dict(saved["model"])
        # Layers that an architecture warm-up has locked take no part
        put_to_work(model, layers_at(saved.get("layers", [[0, model.config.n_layer]]), saved["step"]))
        return model, saved

    steps = [(int(path.stem.removeprefix("ckpt_")), lambda path=path: make(path)) for path in paths]
    return steps, load_checkpoint(newest)["config"]


def pretrained(config):
    """The same for a model in Hugging Face's format, as step 0 of no run, without a checkpoint."""
    if not is_hugging_face(config.init_from):
        raise UserError(f"init_from={config.init_from}: expected resume or hf:DIR_OR_ID")
    source = Pretrained(config.init_from)

    def make():
        model = Transformer(ModelConfig(**source.shape, dropout=0.0))
        model.load_state_dict(source.weights(model.state_dict()))
        return model, None

    Path(config.out_dir).mkdir(parents=True, exist_ok=True)
    return [(0, make)], {"block_size": source.shape["block_size"]}


def probe(config, split, number, world):
    """Batch `number`: this process's windows of it."""
    windows = list(range(world.rank, config.batch_size, world.size))
    x, y = probe_batch(split, config.seed, number, windows, config.block_size)  # (N, T) each
    return Batch(x.to(world.device), y.to(world.device), windows, config.batch_size * config.block_size, number)


def sharpness(config, models, split, world, suggest):
    """Measure every model; rank 0 writes a JSON file for each, and draws. suggest: say the multipliers that follow."""
    repeats = 1 if config.kind in ("data_labels", "empirical") else config.draws  # nothing is drawn in these
    samples = len(models) * config.batches * repeats
    with tqdm(total=samples, unit="sample", disable=not world.is_master, mininterval=2) as progress:
        for step, make in models:
            model = make()[0].to(world.device)
            model = untied(model, copy.deepcopy) if config.split_tied else model
            diagonal, started = Diagonal(model), time.perf_counter()
            for number in range(config.batches):
                batch = probe(config, split, number, world)
                drawn = []
                for draw, sample in enumerate(samples_of(config, model, batch, repeats, world)):
                    if not all(torch.isfinite(d).all() for d in sample):
                        raise UserError(f"step {step}, batch {number}, draw {draw}: the curvature is not finite")
                    drawn.append(sample)
                    progress.update()
                diagonal.add(drawn)
            if world.is_master:
                write_sharpness(config, step, diagonal, repeats, time.perf_counter() - started, suggest)


def samples_of(config, model, batch, repeats, world):
    """One sample of the diagonal for each draw."""
    params, micro = [p for p in model.parameters() if p.requires_grad], config.micro_batch
    if config.kind == "data_labels":
        yield data_diagonal(model, batch, params, micro, world.total)
    elif config.kind == "empirical":
        yield empirical_fisher_diagonal(model, batch, params, world.total)
    elif config.kind == "fisher":
        for draw in range(repeats):
            yield fisher_diagonal(model, batch, params, config.seed, draw, micro, world.total)
    else:
        products = HessianProducts(model, batch, params, micro, world.total)
        for draw in range(repeats):
            yield hessian_diagonal(products, config.seed, batch.number, draw)


def write_sharpness(config, step, diagonal, draws, seconds, suggest):
    blocks = {block: asdict(one) for block, one in diagonal.by_block().items()}
    layers = [
        {"layer": layer, "block": block, "mean": one.mean, "error": one.error, "parameters": one.parameters}
        for (layer, block), one in diagonal.by_layer().items()
    ]
    found = {
        "step": step, "kind": config.kind, "batches": config.batches, "draws": draws,
        "positions": config.batch_size * config.block_size, "dataset": config.dataset, "seed": config.seed,
        "seconds": seconds, "blocks": blocks, "layers": layers, "log10_bins": LOG10_BINS.tolist(),
    }  # fmt: skip
    if suggest:
        means = {block: one["mean"] for block, one in blocks.items()}
        suggested = multipliers(means, config.auto_mult_power, config.auto_mult_max, step)
        found["suggested"] = {"power": config.auto_mult_power, "max": config.auto_mult_max, "lr_mult": suggested}
    path = Path(config.out_dir) / f"sharpness_{config.kind}_{step:08d}.json"
    write_text(path, json.dumps(found, indent=1) + "\n")
    tqdm.write(f"step {step}, {config.kind}: average sharpness by block")
    for block, one in sorted(blocks.items(), key=lambda item: item[1]["mean"]):
        error = "" if one["error"] is None else f" +- {one['error']:.1e}"
        geometric = "-" if one["geometric"] is None else f"{one['geometric']:.2e}"
        tqdm.write(f"  {block:<5} {one['mean']:.3e}{error}   geometric mean {geometric}   {one['parameters']:,} parameters")
    if suggest:
        tqdm.write(as_words(suggested))


def spectrum(config, models, split, world):
    """Eigenvalues of every block's own part of the Hessian, for every model; rank 0 writes a JSON file for each."""
    batch = probe(replace(config, batch_size=config.batches * config.batch_size), split, 0, world)
    steps = steps_of(config, blocks_to_measure(config, models[0][1]()[0]), world.device)
    budget = sum(config.probes * count + POWER_PRODUCTS for count in steps.values())
    with tqdm(total=len(models) * budget, unit="product", disable=not world.is_master, mininterval=2) as progress:
        for step, make in models:
            model = make()[0].to(world.device, getattr(torch, config.dtype))
            blocks, found, started = blocks_to_measure(config, model), {}, time.perf_counter()
            for name, params in blocks.items():
                progress.set_postfix_str(name)
                before = progress.n
                try:
                    products = HessianProducts(model, batch, params, config.micro_batch, world.total)
                    found[name] = spectrum_of(config, name, products, steps[name], world.device, progress.update)
                except FloatingPointError:
                    raise UserError(f"step {step}, {name}: the curvature is not finite") from None
                progress.update(before + config.probes * steps[name] + POWER_PRODUCTS - progress.n)  # if it ended early
            if world.is_master:
                write_spectrum(config, step, found, steps, time.perf_counter() - started)


def blocks_to_measure(config, model):
    """{name: parameters} that config.blocks and config.layers choose; None as parameters' name is the whole model.

    Raises UserError for a layer that there is not, and for a pattern that chooses nothing.
    """
    if beyond := [layer for layer in config.layers or () if not 0 <= layer < model.config.n_layer]:
        raise UserError(f"layers={beyond[0]}: expected layers of 0 to {model.config.n_layer - 1}")
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inside = [(n, p) for n, p in trained if config.layers is None or layer_of(n) in config.layers]
    where = "" if config.layers is None else f" in layers {', '.join(map(str, config.layers))}"
    if config.blocks is None:
        chosen = {name: [p] for name, p in inside if p.ndim == 2}
    else:
        chosen, types = {}, blocks_of(inside)
        for pattern in config.blocks:
            if pattern in types:
                fits = {pattern: [p for _, p in types[pattern]]}
            else:
                fits = {name: [p] for name, p in inside if fnmatchcase(name, pattern)}
            if not fits:
                near = did_you_mean(close(pattern, [*BLOCKS, *(name for name, _ in inside)]))
                raise UserError(f"blocks={pattern}: no block type and no tensor of the model{where}{near}")
            chosen |= fits
    return chosen | ({"full": [p for _, p in trained]} if config.full else {})


def steps_of(config, blocks, device):
    """{block: Lanczos steps}. Raises UserError where more were asked for than a block has parameters, or fit."""
    sizes = {name: sum(p.numel() for p in params) for name, params in blocks.items()}
    for name, size in sizes.items():
        if (config.lanczos_steps or 0) > size:
            raise UserError(f"lanczos_steps={config.lanczos_steps}: {name} has {size} parameters, expected at most these")
    steps = {name: min(config.lanczos_steps or LANCZOS_STEPS, size) for name, size in sizes.items()}
    name = max(sizes, key=sizes.get)
    needed, free = steps[name] * sizes[name] * getattr(torch, config.dtype).itemsize, free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"the {steps[name]} Lanczos vectors of {name}, {sizes[name]:,} parameters, take {needed / 1e9:.0f} GB of "
            f"{free / 1e9:.0f}: expected fewer lanczos_steps, or --blocks and --full=False"
        )
    return steps


def spectrum_of(config, name, products, steps, device, progress):
    """What is written of one block: its quadrature, and power iteration's word on the largest magnitude."""
    like = {"device": device, "dtype": getattr(torch, config.dtype)}
    own = keyed(config.seed, zlib.crc32(name.encode()))  # blocks that share their probes would look alike
    density = quadrature(products, products.size, steps, config.probes, own, progress=progress, **like)
    start = torch.randn(products.size, generator=own, dtype=torch.float64).to(**like)
    return density, power_iteration(products, start, POWER_PRODUCTS)


def write_spectrum(config, step, found, steps, seconds):
    blocks = {}
    for name, (density, power) in found.items():
        mean, error = density.moment()
        blocks[name] = {
            "parameters": density.n, "mean": mean, "error": error, "smallest": density.smallest,
            "largest": density.largest(), "tenth_largest": density.largest(10), "lanczos_steps": steps[name],
            "power_iteration": {"value": power.value, "residual": power.residual, "products": power.products, "converged": power.converged},
            "histogram": density.histogram(bin_edges(), density.largest(10)).tolist() if density.has_ten else None,
            "nodes": [nodes.tolist() for nodes in density.nodes],
            "weights": [weights.tolist() for weights in density.weights],
        }  # fmt: skip
    compared = {name: density for name, (density, _) in found.items() if name != "full" and density.has_ten}
    table, mean = js_distances(list(compared.values()))
    js = {
        "blocks": list(compared), "distances": table.tolist(), "mean": mean if len(compared) > 1 else None,
        "noise": js_noise(list(compared.values())) if compared and config.probes > 1 else None,
    }  # fmt: skip
    found = {
        "step": step, "probes": config.probes, "positions": config.batches * config.batch_size * config.block_size,
        "dataset": config.dataset, "seed": config.seed, "dtype": config.dtype, "seconds": seconds, "blocks": blocks,
        "edges": bin_edges()[1:-1].tolist(), "js": js,
    }  # fmt: skip
    write_text(Path(config.out_dir) / f"spectrum_{step:08d}.json", json.dumps(found) + "\n")
    width = max(map(len, blocks))
    tqdm.write(f"step {step}: eigenvalues of the Hessian\n  {'block':<{width}}  mean      smallest   largest    by power iteration")
    for name, one in blocks.items():
        power = one["power_iteration"]
        unsure = "" if power["converged"] else " (not converged)"
        tqdm.write(f"  {name:<{width}}  {one['mean']:<8.2e}  {one['smallest']:<9.2e}  {one['largest']:<9.2e}  {power['value']:.2e}{unsure}")
    if js["mean"] is not None:
        noise = "" if js["noise"] is None else f"; between the halves of a block's own probes: {js['noise']:.3f}"
        tqdm.write(f"mean Jensen-Shannon distance between blocks (JS0): {js['mean']:.3f}{noise}")
    for name in blocks.keys() - {*compared, "full"}:
        tqdm.write(f"{name} is not compared: it has no ten eigenvalues above 0")


def curvature(config, models, split, world):
    """The largest eigenvalue of every model's Hessian, alone and as its optimizer meets it; rank 0 writes JSON files."""
    batch = probe(replace(config, batch_size=config.batches * config.batch_size), split, 0, world)
    alone = config.init_from != "resume" or config.preconditioner == "none"
    products = len(models) * config.products * (1 if alone else 2)
    with tqdm(total=products, unit="product", disable=not world.is_master, mininterval=2) as progress:
        for step, make in models:
            model, saved = make()
            model, started = model.to(world.device), time.perf_counter()
            scales, optimizer = ({}, {}) if alone else met_by_optimizer(config, saved, model)
            identity = {p: torch.ones_like(p) for p in model.parameters() if p.requires_grad}
            found = {"hessian": top(config, step, model, identity, batch, world, progress)}
            if scales:
                value = top(config, step, model, scales, batch, world, progress)
                rate = {"lr_lambda": optimizer["lr"]["Norm"] * value["lambda_max"]}
                found["preconditioned"] = value | rate | optimizer | {"exclude": config.exclude}
            elif not alone:
                progress.total -= config.products
            if world.is_master:
                write_curvature(config, step, found, time.perf_counter() - started)


def met_by_optimizer(config, saved, model):
    """R^(1/2) P^(-1/2) of a checkpoint's optimizer, {} where it has none, and what belongs to it: lr, threshold."""
    run, step = SimpleNamespace(**saved["config"]), saved["step"]
    adam = run.optimizer in ("adamw", "adam_mini")
    if not adam and (run.optimizer != "sgd" or config.preconditioner == "adam"):
        instead = "auto (none, as sgd steps) or none" if run.optimizer == "sgd" else "none, for the Hessian alone"
        problem = f"the checkpoint of step {step} is of {run.optimizer}, which has no second moments like Adam's"
        raise UserError(f"preconditioner={config.preconditioner}: {problem}; expected {instead}")
    groups = param_groups(model, run.learning_rate, multipliers_at(run, step, saved.get("auto_mult")))
    if {group["block"] for group in groups} <= set(config.exclude):
        raise UserError(f"exclude={','.join(config.exclude)}: expected to leave a block of the model")
    optimizer = build_optimizer(run.optimizer, groups, (run.beta1, run.beta2), run.n_embd // run.n_head)
    load_optimizer(optimizer, saved["optimizer"])
    for group in optimizer.param_groups:
        group["lr"] = block_rate(run, step, group["lr_mult"])
    scales = scaling(optimizer.param_groups, preconditioner(optimizer), config.exclude)
    if not any(scale.any() for scale in scales.values()):
        return {}, {}
    rates = {group["block"]: group["lr"] for group in optimizer.param_groups}
    return scales, {"lr": rates, "threshold": stability_threshold(run.optimizer, run.beta1)}


def top(config, step, model, scales, batch, world, progress):
    """The largest eigenvalue of D H D with D's entries `scales`, {parameter: tensor}, and how sure it is."""
    matrix = Preconditioned(HessianProducts(model, batch, scales, config.micro_batch, world.total), scales.values())

    def counted(v):
        progress.update()
        return matrix(v)

    try:
        found = largest_eigenvalue(counted, matrix.random(config.seed), config.products, config.tolerance)
    except FloatingPointError:
        raise UserError(f"step {step}: the curvature is not finite") from None
    progress.total -= config.products - found.products
    result = {"lambda_max": found.value, "residual": found.residual}
    return result | {"products": found.products, "converged": found.converged}


def write_curvature(config, step, found, seconds):
    about = {
        "step": step, "dataset": config.dataset, "positions": config.batches * config.batch_size * config.block_size,
        "seed": config.seed, "tolerance": config.tolerance, "seconds": seconds,
    }  # fmt: skip
    write_text(Path(config.out_dir) / f"curvature_{step:08d}.json", json.dumps(about | found, indent=1) + "\n")
    tqdm.write(f"step {step}: largest eigenvalue")
    for kind, one in found.items():
        note = "" if one["converged"] else f", NOT CONVERGED after {one['products']} products"
        tqdm.write(f"  {kind:<15}{one['lambda_max']:.4e}   residual {one['residual']:.1e}{note}")
    if "preconditioned" in found:
        one = found["preconditioned"]
        tqdm.write(f"  {'times the rate':<15}{one['lr_lambda']:.4g}, and {one['threshold']:.4g} is the threshold")
    elif config.init_from == "resume" and config.preconditioner != "none":
        tqdm.write("  no preconditioned one: the optimizer has no state yet, or the learning rate is 0")


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(config, flags))
