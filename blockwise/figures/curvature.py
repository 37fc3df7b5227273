"""The largest eigenvalues against the step, of checkpoints and as train.py logged them."""

from blockwise.curves import read_rows
from blockwise.figures.style import COLOURS, measurements, start_figure


def figures(folder):
    """curvature.png of what measure.py wrote and train.py logged."""
    measured = measurements(folder, "curvature").get("curvature", [])
    rows = read_rows(folder) if (folder / "metrics.jsonl").is_file() else []
    live = [row for row in rows if isinstance(row.get("curvature/lr_lambda"), int | float)]  # NaN is a string
    scaled = [(row["step"], row["preconditioned"]) for row in measured if "preconditioned" in row]
    plain = [(row["step"], row["hessian"]) for row in measured]
    if plain or live:
        figure, panels = start_figure(bool(scaled or live) + bool(plain))
        if scaled or live:
            draw_stability(panels[0], scaled, live)
        if plain:
            draw_eigenvalues(panels[-1], plain, "lambda_max", "Hessian")
            panels[-1].set(xlabel="step", ylabel="largest eigenvalue of the Hessian")
            panels[-1].legend(frameon=False)
        yield "curvature.png", figure


def draw_stability(axes, scaled, live):
    """Learning rate times the largest preconditioned eigenvalue, and the threshold."""
    thresholds = {row["threshold"] for _, row in scaled} | {row["curvature/threshold"] for row in live}
    for threshold in sorted(thresholds):
        axes.axhline(threshold, color="black", linestyle=(0, (5, 2)), label=f"threshold, {threshold:.3g}")
    if live:
        x, y = [row["step"] for row in live], [row["curvature/lr_lambda"] for row in live]
        axes.plot(x, y, color=COLOURS[0], linewidth=1, label="while training")
    if scaled:
        draw_eigenvalues(axes, scaled, "lr_lambda", "checkpoints")
    axes.set(xlabel="step", ylabel="rate of Norm x largest preconditioned eigenvalue")
    low, high = axes.get_ylim()
    axes.set_ylim(min(0, low), 1.05 * high)
    axes.legend(frameon=False)


def draw_eigenvalues(axes, points, key, label):
    """Values against the step, (step, value) pairs; those that have not converged are open circles."""
    x, y = [step for step, _ in points], [row[key] for _, row in points]
    axes.plot(x, y, color=COLOURS[1], marker="o", markersize=5, label=label)
    unsure = [(step, row[key]) for step, row in points if not row["converged"]]
    if unsure:
        style = {"color": COLOURS[1], "linestyle": "", "marker": "o", "markersize": 5, "markerfacecolor": "white"}
        axes.plot(*zip(*unsure, strict=True), label="not converged", zorder=3, **style)
