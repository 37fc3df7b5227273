"""Loss by frequency of the token: what measure.py frequency found, of one run or of two."""

from blockwise.figures.style import COLOURS, literal, measurements, start_figure


def figures(folder):
    """frequency_BY.png: the newest step's losses, and the differences of up to six steps."""
    for name, steps in measurements(folder, "frequency").items():
        yield f"{name}.png", figure_of(steps)


def figure_of(steps):
    newest, paired = steps[-1], [measured for measured in steps if measured["against"] is not None]
    figure, panels = start_figure(1 + bool(paired))
    draw_line(panels[0], newest, "loss", "error", COLOURS[0], newest["out_dir"])
    if newest["against"] is not None:
        draw_line(panels[0], newest, "against", None, "black", newest["against"], linestyle=(0, (5, 2)))
        panels[0].legend(frameon=False)
    panels[0].set(ylabel="loss (nats per token)", title=f"step {newest['step']}")
    if paired:
        axes = panels[1]
        axes.axhline(0, color="black", linewidth=1)
        shown = paired[:: -max(1, -(-len(paired) // len(COLOURS)))][::-1]  # the newest is among them
        for measured, colour in zip(shown, COLOURS, strict=False):
            draw_line(axes, measured, "difference", "difference_error", colour, f"step {measured['step']}")
        axes.set(ylabel=literal(f"loss less that of {paired[-1]['against']}"), title="below 0: lower loss")
        axes.legend(frameon=False)
    for axes in panels:
        positions = [row["part"] for row in newest["parts"]]
        axes.set_xticks(positions, [label(row, newest["training_tokens"]) for row in newest["parts"]], fontsize=7)
        where = "tenths of the training text by its frequency\n(least to most, per million)"
        axes.set_xlabel(f"{newest['by']} token, {where}")
    figure.suptitle(literal(f"{newest['dataset']}, {newest['sequences']} validation sequences"))
    return figure


def draw_line(axes, measured, key, error, colour, name, linestyle="-"):
    x, y = [row["part"] for row in measured["parts"]], [row[key] for row in measured["parts"]]
    bars = [row[error] or 0 for row in measured["parts"]] if error else None
    axes.errorbar(x, y, bars, color=colour, linestyle=linestyle, marker="o", markersize=4, capsize=3,
                  label=literal(name))  # fmt: skip


def label(row, tokens):
    """Number of the part over how often its tokens occur in a million."""
    rates = [1e6 * row[key] / max(tokens, 1) for key in ("least", "most")]
    least, most = (f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}" for rate in rates)
    return f"{row['part']}\n{least}\nto\n{most}"
