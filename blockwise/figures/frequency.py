"""Loss by frequency of the token: what measure.py frequency found, of one run or of two."""

from blockwise.figures.style import COLOURS, literal, measurements, start_figure


def figures(folder):
    """frequency.png of the newest step: the losses, and how much lower they are than another run's."""
    for name, steps in measurements(folder, "frequency").items():
        found, against = steps[-1], steps[-1]["against"]
        figure, panels = start_figure(1 + bool(against))
        draw_line(panels[0], found, "loss", "error", color=COLOURS[0], label=literal(found["out_dir"]))
        panels[0].set(ylabel="loss (nats per token)", title=f"step {found['step']}")
        if against:
            draw_line(panels[0], found, "against", color="black", linestyle=(0, (5, 2)), label=literal(against))
            panels[0].legend(frameon=False)
            panels[1].axhline(0, color="black", linewidth=1)
            draw_line(panels[1], found, "difference", "difference_error", color=COLOURS[0])
            panels[1].set(ylabel=literal(f"loss less that of {against}"), title="below 0: lower loss")
        for axes in panels:
            rows = {row["part"]: label(row, found["training_tokens"]) for row in found["parts"]}
            axes.set_xticks(list(rows), list(rows.values()), fontsize=7)
            axes.set_xlabel("tenths of the training text by its tokens' frequency\n(least to most, per million)")
        figure.suptitle(literal(f"{found['dataset']}, {found['sequences']} validation sequences"))
        yield f"{name}.png", figure


def draw_line(axes, found, key, error=None, **style):
    x, y = [row["part"] for row in found["parts"]], [row[key] for row in found["parts"]]
    bars = [row[error] or 0 for row in found["parts"]] if error else None
    axes.errorbar(x, y, bars, marker="o", markersize=4, capsize=3, **style)


def label(row, tokens):
    """Number of the part over how often its tokens occur in a million."""
    rates = [1e6 * row[key] / max(tokens, 1) for key in ("least", "most")]
    least, most = (f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}" for rate in rates)
    return f"{row['part']}\n{least}\nto\n{most}"
