"""Architecture warm-up (arXiv 2606.16768): few layers while the learning rate rises, more of them as it falls.

The last layers are locked at first: skipped, and outside of the optimizer. At preset steps groups of them are unlocked.
The paper zeroes all weights of a locked layer but the norms', so that it is the identity; but a product of zeros has no
gradient, and such layers never moved. Here only the output projections, o_proj and down_proj, are zero: they have a
gradient in the first step, all others in the second. docs/methods.md has the measurements.
"""


def layer_schedule(config):
    """[[step, number of active layers from it on], ...] under the keys of a run's config, the first at step 0.

    The first group is unlocked when the learning rate's warmup ends (without one, after arch_warmup_interval steps),
    and the others follow arch_warmup_interval steps apart.
    Raises UserError where the keys fit neither the number of layers nor that of steps.
    """
    if not config.arch_warmup:
        return [[0, config.n_layer]]
    config.check("n_layer", config.n_layer > 1, "at least 2 for arch_warmup")
    first = min(max(round(config.arch_warmup_start * config.n_layer), 1), config.n_layer - 1)
    groups, locked = config.arch_warmup_groups, config.n_layer - first
    config.check("arch_warmup_groups", groups <= locked, f"at most {locked}, the layers that are locked at first")
    warmup = config.warmup_iters if config.decay_lr else 0
    steps = [(warmup or config.arch_warmup_interval) + i * config.arch_warmup_interval for i in range(groups)]
    config.check("max_iters", steps[-1] < config.max_iters, f"above {steps[-1]}, where arch_warmup unlocks the last")
    return [[0, first], *([step, first + locked * (i + 1) // groups] for i, step in enumerate(steps))]


def active_layers_at(schedule, step):
    """Number of active layers in a step."""
    return [layers for since, layers in schedule if since <= step][-1]


def make_identity(block):
    """Zero what a block adds to its input: the output projections of its two branches."""
    for linear in (block.attn.o_proj, block.mlp.down_proj):
        for p in linear.parameters():
            p.detach().zero_()


class LayerWarmup:
    """The layers of a run, step by step; without arch_warmup all of them are active from the start."""

    def __init__(self, config, checkpoint):
        """A run that is resumed keeps the schedule that it began with. Raises what `layer_schedule` raises."""
        self.is_new = not checkpoint
        self.schedule = checkpoint["layers"] if checkpoint else layer_schedule(config)

    def grow_at(self, model, step):
        """Whether more layers are active from this step on than the model has now."""
        return active_layers_at(self.schedule, step) > model.n_active_layers

    def activate(self, model, step):
        model.set_active_layers(active_layers_at(self.schedule, step))

    def begin(self, model, step):
        """Activate the layers of this step; in a new run the locked ones begin as the identity."""
        for block in model.blocks[active_layers_at(self.schedule, 0) :] if self.is_new else ():
            make_identity(block)
        self.activate(model, step)

    def describe(self, step=0):
        """The schedule from a step on: '2 of 4 layers active, 3 from step 60, 4 from step 80'."""
        later = [f"{layers} from step {since}" for since, layers in self.schedule if since > step]
        active = f"{active_layers_at(self.schedule, step)} of {self.schedule[-1][1]} layers active"
        return ", ".join([active, *later])

    def state_dict(self):
        return {"layers": self.schedule}
