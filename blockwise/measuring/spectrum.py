"""Eigenvalues of every block's own part of the Hessian, and distances between them: spectrum_STEP.json."""

import time
import zlib
from fnmatch import fnmatchcase

import torch
from tqdm import tqdm

from blockwise import UserError
from blockwise.blocks import BLOCKS, blocks_of, layer_of
from blockwise.curvature.eigenvalues import power_iteration
from blockwise.curvature.hessian import Batch, HessianVectorProduct, keyed
from blockwise.curvature.spectra import BIN_EDGES, js_distances, js_noise, quadrature
from blockwise.hardware import free_memory
from blockwise.measuring import counted, progress_bar, write_json
from blockwise.spelling import close, did_you_mean

LANCZOS_STEPS = 100  # per probe, where a block has as many parameters
POWER_PRODUCTS = 100  # of power iteration, which checks the eigenvalue of largest magnitude


def measure(config, models, split, world):
    """Measure every block of every model; rank 0 writes a JSON file for each model."""
    batch = Batch.sample(split, config.seed, 0, config.batches * config.batch_size, config.block_size, world)
    if world.device.type == "mps" and config.dtype == "float64":
        raise UserError("dtype=float64: an MPS device has no such numbers; expected float32, or device=cpu")
    with progress_bar(world, unit="product") as progress:
        for number, (step, load) in enumerate(models):
            model = load()[0]
            sizes = {name: sum(p.numel() for p in params) for name, params in blocks_to_measure(config, model).items()}
            steps = lanczos_steps(config, sizes)
            if number == 0:
                require_memory(config, sizes, steps, world.device)
            budget = sum(config.probes * count + POWER_PRODUCTS for count in steps.values())
            progress.total = progress.n + (len(models) - number) * budget
            model = model.to(world.device, getattr(torch, config.dtype))
            measured, started = {}, time.perf_counter()
            for name, params in blocks_to_measure(config, model).items():
                progress.set_postfix_str(name)
                before = progress.n
                try:
                    hessian = HessianVectorProduct(model, batch, params, config.micro_batch, world.all_reduce_sum)
                    measured[name] = spectrum_of(config, name, hessian, steps[name], world.device, progress)
                except FloatingPointError:
                    raise UserError(f"step {step}, {name}: the curvature is not finite") from None
                progress.update(before + config.probes * steps[name] + POWER_PRODUCTS - progress.n)  # if it ended early
            if world.is_master:
                write_spectrum(config, step, measured, steps, time.perf_counter() - started)


def blocks_to_measure(config, model):
    """{name: list of parameters} that config.blocks and config.layers select, and "full" for all that are trained.

    Raises UserError for a layer that does not exist, and for a pattern that matches nothing.
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


def lanczos_steps(config, sizes):
    """{block: Lanczos steps per probe}. Raises UserError if `config` asks for more than a block has parameters."""
    for name, size in sizes.items():
        if (config.lanczos_steps or 0) > size:
            problem = f"lanczos_steps={config.lanczos_steps}: {name} has {size} parameters"
            raise UserError(f"{problem}, expected at most these")
    return {name: min(config.lanczos_steps or LANCZOS_STEPS, size) for name, size in sizes.items()}


def require_memory(config, sizes, steps, device):
    """Raises UserError if the Lanczos vectors of the largest block do not fit into the free memory."""
    name = max(sizes, key=sizes.get)
    needed, free = steps[name] * sizes[name] * getattr(torch, config.dtype).itemsize, free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"the {steps[name]} Lanczos vectors of {name}, {sizes[name]:,} parameters, take {needed / 1e9:.0f} GB of "
            f"{free / 1e9:.0f}: expected fewer lanczos_steps, or --blocks and --full=False"
        )


def spectrum_of(config, name, hessian, steps, device, progress):
    """(Spectrum, Eigenvalue) of one block: the density by quadrature, the largest magnitude by power iteration."""
    dtype, matvec = getattr(torch, config.dtype), counted(hessian, progress)
    generator = keyed(config.seed, zlib.crc32(name.encode()))  # with shared probes, blocks would look too much alike
    density = quadrature(matvec, hessian.size, steps, config.probes, generator, device, dtype)
    start = torch.randn(hessian.size, generator=generator, dtype=torch.float64).to(dtype).to(device)
    return density, power_iteration(matvec, start, POWER_PRODUCTS)


def write_spectrum(config, step, measured, steps, seconds):
    blocks = {}
    for name, (density, power) in measured.items():
        mean, error = density.mean()
        blocks[name] = {
            "parameters": density.n, "mean": mean, "error": error, "smallest": density.smallest,
            "largest": density.largest(), "tenth_largest": density.largest(10), "lanczos_steps": steps[name],
            "power_iteration": {
                "value": power.value, "residual": power.residual, "products": power.products,
                "converged": power.converged,
            },
            "histogram": density.histogram(BIN_EDGES, density.largest(10)).tolist() if density.has_ten else None,
            "nodes": [nodes.tolist() for nodes in density.nodes],
            "weights": [weights.tolist() for weights in density.weights],
        }  # fmt: skip
    compared = {name: density for name, (density, _) in measured.items() if name != "full" and density.has_ten}
    table, mean = js_distances(list(compared.values()))
    js = {
        "blocks": list(compared), "distances": table.tolist(), "mean": mean if len(compared) > 1 else None,
        "noise": js_noise(list(compared.values())) if compared and config.probes > 1 else None,
    }  # fmt: skip
    measured = {
        "step": step, "probes": config.probes, "positions": config.batches * config.batch_size * config.block_size,
        "dataset": config.dataset, "seed": config.seed, "dtype": config.dtype, "seconds": seconds, "blocks": blocks,
        "edges": BIN_EDGES[1:-1].tolist(), "js": js,
    }  # fmt: skip
    write_json(config, "spectrum", measured, indent=None)
    print_spectrum(step, blocks, js)


def print_spectrum(step, blocks, js):
    width = max(map(len, blocks))
    tqdm.write(f"step {step}: eigenvalues of the Hessian")
    tqdm.write(f"  {'block':<{width}}  mean      smallest   largest    by power iteration")
    for name, spectrum in blocks.items():
        power = spectrum["power_iteration"]
        unsure = "" if power["converged"] else " (not converged)"
        ends = f"{spectrum['smallest']:<9.2e}  {spectrum['largest']:<9.2e}  {power['value']:.2e}{unsure}"
        tqdm.write(f"  {name:<{width}}  {spectrum['mean']:<8.2e}  {ends}")
    if js["mean"] is not None:
        noise = "" if js["noise"] is None else f"; between the halves of a block's generator probes: {js['noise']:.3f}"
        tqdm.write(f"mean Jensen-Shannon distance between blocks (JS0): {js['mean']:.3f}{noise}")
    for name in [name for name in blocks if name not in (*js["blocks"], "full")]:
        tqdm.write(f"{name} is not compared: it has no ten eigenvalues above 0")
