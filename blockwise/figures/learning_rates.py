"""The learning rate of every block against the step, under a config."""

from blockwise import UserError
from blockwise.figures.style import COLOURS, literal, start_figure, write
from blockwise.schedules import block_rate


def draw(config, asked, out):
    """Draw to `out` the learning rate of every block under a resolved config, and print its largest and last value.

    asked: what the title says of the config. Raises UserError where a run sets the multipliers itself.
    """
    if config.lr_mult == "auto":
        raise UserError("lr_mult=auto: expected numbers; a run measures them, and its rows have them as lr_mult/QK ...")
    names = {}  # multiplier -> the blocks that have it, which run at one rate
    for block, mult in config.lr_mult.items():
        if block != "Head" or not config.tie_weights:
            names.setdefault(mult, []).append(block)
    steps = [*range(0, config.max_iters, max(1, config.max_iters // 2000)), config.max_iters]
    rates = {mult: [block_rate(config, step, mult) for step in steps] for mult in sorted(names, reverse=True)}
    figure, (axes,) = start_figure()
    top, bottom = max(map(max, rates.values())), min(min(r[r.index(max(r)) :]) for r in rates.values())
    if bottom > 0:  # the start of the warmup is cut off: it would take most of the axis
        axes.set(yscale="log", ylim=(max(0.8 * bottom, 1e-4 * top), 1.25 * top))
    for (mult, values), colour in zip(rates.items(), COLOURS, strict=False):
        text = f"{', '.join(names[mult])} {mult:g}x" if len(names) > 1 else "all blocks"
        axes.plot(steps, values, linewidth=2, color=colour, label=text)
        print(f"{text}: up to {max(values):.3g}, {values[-1]:.3g} at step {steps[-1]}")
    schedule = config.schedule if config.decay_lr else "constant, no warmup"
    schedule += ", wsd_boost=paper" if (config.schedule, config.wsd_boost) == ("wsd", "paper") else ""
    axes.set_title(literal(f"{config.optimizer}, {schedule}: {asked}"), wrap=True)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.margins(x=0)
    axes.legend(frameon=False)
    write(figure, out)
