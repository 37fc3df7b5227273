"""Average sharpness of every block, by block type and by layer: sharpness_KIND_STEP.json."""

import torch

from blockwise.curvature import diagonals
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.lr_multipliers import as_arguments, multipliers
from blockwise.measuring import progress_bar


class Sharpness:
    def __init__(self, config, data, run, world, suggest=False):
        """suggest: also find the multipliers that follow."""
        self.config, self.data, self.world, self.suggest = config, data, world, suggest
        self.draws = 1 if config.kind in ("data_labels", "empirical") else config.draws  # these two are deterministic

    def measure(self, step, model, checkpoint):
        config, diagonal = self.config, diagonals.Diagonal(model)
        with progress_bar(self.world, total=config.batches * self.draws, unit="sample") as progress:
            for number in range(config.batches):
                where = self.data.train, config.seed, number, config.batch_size, config.block_size
                batch = Batch.sample(*where, self.world, config.micro_batch)
                drawn = []
                for sample in self.samples(model, batch):
                    if not all(torch.isfinite(d).all() for d in sample):
                        raise FloatingPointError("a diagonal is not finite")
                    drawn.append(sample)
                    progress.update()
                diagonal.add(drawn)
        layers = [
            {"layer": layer, "block": block} | {key: stats[key] for key in ("mean", "error", "parameters")}
            for (layer, block), stats in diagonal.by_layer().items()
        ]
        found = {
            "kind": config.kind, "batches": config.batches, "draws": self.draws,
            "positions": config.batch_size * config.block_size,
            "blocks": diagonal.by_block(),
            "layers": layers, "log10_bins": diagonals.LOG10_BINS.tolist(),
        }  # fmt: skip
        if self.suggest:
            averages = {block: stats["mean"] for block, stats in found["blocks"].items()}
            suggested = multipliers(averages, config.auto_mult_power, config.auto_mult_max, step)
            found["suggested"] = {"power": config.auto_mult_power, "max": config.auto_mult_max, "lr_mult": suggested}
        return found

    def samples(self, model, batch):
        """Samples of the diagonal by the config's estimator, one a draw: lists of tensors like the parameters."""
        kind, seed, draws = self.config.kind, self.config.seed, range(self.draws)
        params = [p for p in model.parameters() if p.requires_grad]
        if kind == "data_labels":
            return [diagonals.data_diagonal(model, batch, params)]
        if kind == "empirical":
            return [diagonals.empirical_fisher_diagonal(model, batch, params)]
        if kind == "fisher":
            return (diagonals.fisher_diagonal(model, batch, params, seed, draw) for draw in draws)
        hessian = HessianVectorProduct(model, batch, params)
        return (diagonals.hessian_diagonal(hessian, seed, draw) for draw in draws)

    def report(self, found):
        yield f"{found['kind']}: average sharpness by block"
        for block, stats in sorted(found["blocks"].items(), key=lambda item: item[1]["mean"]):
            error = "" if stats["error"] is None else f" +- {stats['error']:.1e}"
            geometric = "-" if stats["geometric"] is None else f"{stats['geometric']:.2e}"
            means = f"{stats['mean']:.3e}{error}   geometric mean {geometric}"
            yield f"  {block:<5} {means}   {stats['parameters']:,} parameters"
        if "suggested" in found:
            yield as_arguments(found["suggested"]["lr_mult"])
