"""Eigenvalues of every block's own part of the Hessian, and distances between them: spectrum_STEP.json."""

import zlib
from fnmatch import fnmatchcase

import torch

from blockwise import UserError
from blockwise.blocks import BLOCKS, blocks_of, layer_of
from blockwise.curvature.eigenvalues import power_iteration
from blockwise.curvature.hessian import Batch, HessianVectorProduct, keyed
from blockwise.curvature.spectra import BIN_EDGES, js_distances, js_noise, quadrature
from blockwise.hardware import free_memory
from blockwise.measuring import progress_bar
from blockwise.spelling import close, did_you_mean

POWER_PRODUCTS = 100  # of power iteration, which checks the eigenvalue of largest magnitude


class Spectrum:
    def __init__(self, config, data, run, world):
        if world.device.type == "mps" and config.dtype == "float64":
            raise UserError("dtype=float64: an MPS device has no such numbers; expected float32, or device=cpu")
        self.config, self.world, self.dtype = config, world, getattr(torch, config.dtype)
        sequences = config.batches * config.batch_size
        where = data.train, config.seed, 0, sequences, config.block_size
        self.batch = Batch.sample(*where, world, config.micro_batch)

    def measure(self, step, model, checkpoint):
        chosen = blocks_to_measure(self.config, model.to(self.dtype))
        steps = self.lanczos_steps(chosen)
        densities, blocks = {}, {}
        with progress_bar(self.world, total=len(chosen), unit="block") as progress:
            for name, params in chosen.items():
                progress.set_postfix_str(name)
                densities[name], blocks[name] = self.spectrum(name, model, params, steps[name])
                progress.update()
        compared = {name: density for name, density in densities.items() if name != "full" and density.has_ten}
        table, mean = js_distances(list(compared.values()))
        js = {
            "blocks": list(compared), "distances": table.tolist(), "mean": mean,
            "noise": js_noise(list(compared.values())) if compared and self.config.probes > 1 else None,
        }  # fmt: skip
        return {
            "probes": self.config.probes, "positions": self.batch.positions, "dtype": self.config.dtype,
            "blocks": blocks, "edges": BIN_EDGES[1:-1].tolist(), "js": js,
        }  # fmt: skip

    def lanczos_steps(self, chosen):
        """{block: Lanczos steps per probe}. Raises UserError for vectors that do not fit into the memory."""
        sizes = {name: sum(p.numel() for p in params) for name, params in chosen.items()}
        steps = {name: min(self.config.lanczos_steps, size) for name, size in sizes.items()}
        name = max(sizes, key=sizes.get)
        needed, free = steps[name] * sizes[name] * self.dtype.itemsize, free_memory(self.world.device)
        if free is not None and needed > free:
            raise UserError(
                f"the {steps[name]} Lanczos vectors of {name}, {sizes[name]:,} parameters, take {needed / 1e9:.0f} GB "
                f"of {free / 1e9:.0f}: expected fewer lanczos_steps, or --blocks and --full=False"
            )
        return steps

    def spectrum(self, name, model, params, steps):
        """Of one block: its density by quadrature, and what is written of it, with a check by power iteration."""
        config, device = self.config, self.world.device
        hessian = HessianVectorProduct(model, self.batch, params)
        generator = keyed(config.seed, zlib.crc32(name.encode()))  # with shared probes blocks would look too much alike
        density = quadrature(hessian, hessian.size, steps, config.probes, generator, device, self.dtype)
        start = torch.randn(hessian.size, generator=generator, dtype=torch.float64).to(self.dtype).to(device)
        power = power_iteration(hessian, start, POWER_PRODUCTS)
        mean, error = density.mean()
        return density, {
            "parameters": density.n, "mean": mean, "error": error, "smallest": density.smallest,
            "largest": density.largest(), "tenth_largest": density.largest(10), "lanczos_steps": steps,
            "power_iteration": {key: value for key, value in vars(power).items() if key != "vector"},
            "histogram": density.histogram(BIN_EDGES, density.largest(10)).tolist() if density.has_ten else None,
            "nodes": [nodes.tolist() for nodes in density.nodes],
            "weights": [weights.tolist() for weights in density.weights],
        }  # fmt: skip

    def report(self, found):
        blocks, js = found["blocks"], found["js"]
        width = max(map(len, blocks))
        yield "eigenvalues of the Hessian"
        yield f"  {'block':<{width}}  mean      smallest   largest    by power iteration"
        for name, spectrum in blocks.items():
            power = spectrum["power_iteration"]
            unsure = "" if power["converged"] else " (not converged)"
            ends = f"{spectrum['smallest']:<9.2e}  {spectrum['largest']:<9.2e}  {power['value']:.2e}{unsure}"
            yield f"  {name:<{width}}  {spectrum['mean']:<8.2e}  {ends}"
        if js["mean"] is not None:
            noise = "" if js["noise"] is None else f"; between the halves of a block's own probes: {js['noise']:.3f}"
            yield f"mean Jensen-Shannon distance between blocks (JS0): {js['mean']:.3f}{noise}"
        for name in [name for name in blocks if name not in (*js["blocks"], "full")]:
            yield f"{name} is not compared: it has no ten eigenvalues above 0"


def blocks_to_measure(config, model):
    """{name: list of parameters} that config.blocks and config.layers select, and "full" for all that are trained.

    Raises UserError for a layer that does not exist, and for a pattern that matches nothing.
    """
    if beyond := [layer for layer in config.layers or () if layer >= model.config.n_layer]:
        raise UserError(f"layers={beyond[0]}: expected layers of 0 to {model.config.n_layer - 1}")
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inside = [(n, p) for n, p in trained if config.layers is None or layer_of(n) in config.layers]
    where = "" if config.layers is None else f" in layers {', '.join(map(str, config.layers))}"
    types = {block: [p for _, p in members] for block, members in blocks_of(inside).items()}
    chosen = {name: [p] for name, p in inside if p.ndim == 2} if config.blocks is None else {}
    for pattern in config.blocks or ():
        fits = {name: [p] for name, p in inside if fnmatchcase(name, pattern)}
        if pattern in types:
            fits = {pattern: types[pattern]}
        if not fits:
            near = did_you_mean(close(pattern, [*BLOCKS, *(name for name, _ in inside)]))
            raise UserError(f"blocks={pattern}: no block type and no tensor of the model{where}{near}")
        chosen |= fits
    return chosen | ({"full": [p for _, p in trained]} if config.full else {})
