"""Every block's rate against the width, by every rule."""

from dataclasses import replace

from blockwise import UserError
from blockwise.figures.style import COLOURS, literal, start_figure, write
from blockwise.rules import RULES

WIDTHS = tuple(64 * 2**n for n in range(8))
# Where rules agree their lines lie on each other: dashes and thickness let each show
STYLES = ("-", "-", "-", (0, (6, 3)), (0, (2, 2)), "-", (0, (1, 3)), "-.")
THICKNESS = (2.4, 6, 3, 1.8, 1.8, 1.8, 1.8, 1.8)
PANELS = ("Emb", "Head", "QK", "VO", "FFN", "Norm")


def draw(config, out):
    """Draw to `out` every block's peak rate over learning_rate for widths from 64 to 8192; print those of the config.

    config: resolved; all of the shape but the width stays. Raises UserError where a rule has no rate.
    """
    head_width, rates = config.n_embd // config.n_head, {}
    figure, panels = start_figure(len(PANELS))
    figure.set_size_inches(11, 11)
    for number, name in enumerate(RULES):
        points = [(width, rates_at(config, name, width, head_width)) for width in WIDTHS if width >= head_width]
        if not points:
            raise UserError(f"n_embd / n_head = {head_width}: expected heads of at most {WIDTHS[-1]}")
        rates = rates_at(config, name, config.n_embd, head_width)
        print(f"{name:<12}" + "  ".join(f"{block} {rates[block]:.3g}" for block in PANELS if block in rates))
        colour = (*COLOURS, "black", "grey")[number]
        for axes, block in zip(panels, PANELS, strict=True):
            if block in rates:
                line = {"color": colour, "linestyle": STYLES[number], "linewidth": THICKNESS[number]}
                axes.plot([w for w, _ in points], [rates[block] for _, rates in points], label=name, **line)
    for axes, block in zip(panels, PANELS, strict=True):
        if not axes.lines:
            axes.remove()
            continue
        axes.axvline(config.n_embd, color="grey", linewidth=1, linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel="width", ylabel="peak rate / learning_rate")
        axes.set_title(block)
        axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        axes.minorticks_off()
        low, high = min(axes.get_ylim()[0], 0.5), max(axes.get_ylim()[1], 2.0)
        ticks = [tick * 10**power for power in range(-4, 3) for tick in (1, 2, 5) if low <= tick * 10**power <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(low, high)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside lower center", frameon=False, handlelength=3.5)
    shape = f"{config.model_type}, {config.n_layer} layers, heads of {head_width}, {config.vocab_size:,} token ids"
    figure.suptitle(literal(f"{shape}, {config.tokens_per_step:,} tokens a step; dotted: width {config.n_embd}"))
    write(figure, out)


def rates_at(config, name, width, head_width):
    """{block: peak rate over learning_rate} by a rule at a width; without Head where it is tied."""
    config = replace(config, n_embd=width, n_head=width // head_width, n_kv_head=None, n_inner=None)
    rates = dict(replace(config, lr_rule=name).shape_rates().lr_mult)
    return {block: rate for block, rate in rates.items() if block != "Head" or not config.tie_weights}
