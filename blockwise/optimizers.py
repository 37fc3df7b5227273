"""The optimizers of a run by name, over the groups that `blockwise.blocks.param_groups` makes.

A group's `block` says what kind of parameters it holds; its `lr`, set in every step, and its `weight_decay` hold for
all of them, whichever optimizer takes the step.
"""

import math

import torch

from blockwise.muon import Muon, local

MATRIX_BLOCKS = ("QK", "VO", "FFN")  # what Muon takes; embeddings are tables of rows, not maps


def optimizer_for(config, groups):
    """The optimizer of a run by its keys, over groups of `param_groups`: what trains, and what others measure it by.

    config: a TrainConfig, or a checkpoint's, with its values filled in.
    """
    betas = (config.beta1, config.beta2)
    groups = with_betas(groups, betas, config.block_beta2)
    muon = {"compiled": config.compile is True, "muon_dtype": getattr(torch, config.muon_dtype)}
    return build_optimizer(config.optimizer, groups, betas, config.n_embd // config.n_head, **muon)


def with_betas(groups, betas, block_beta2):
    """The groups, those of the blocks that block_beta2 names with `betas` of their own: (beta1, block_beta2[block]).

    groups: of `param_groups`; torch.optim and `build_optimizer` give the others the betas that they are called with.
    """
    named = {block: (betas[0], beta2) for block, beta2 in block_beta2.items()}
    return [{**group, "betas": named[group["block"]]} if group["block"] in named else group for group in groups]


def build_optimizer(name, groups, betas, head_width=None, compiled=False, muon_dtype=torch.bfloat16):
    """The optimizer `name` over groups of `param_groups`. Weight decay is decoupled, p <- (1 - lr wd) p, but for sgd.

    adamw      torch.optim.AdamW (arXiv 1711.05101)
    adam_mini  AdamMini, below; needs head_width, the rows of a Q or K matrix that belong to one head
    lion       Lion, below; betas: of the update, of the momentum
    muon       MuonWithAdamW, below; betas: of its AdamW part; compiled, muon_dtype: of its orthogonalisation
    sgd        torch.optim.SGD; betas[0] is its momentum, and weight_decay * p is added to the gradient
    """
    groups = [dict(group) for group in groups]  # torch would put its settings into the caller's
    if name == "adamw":
        return adamw(groups, betas)
    if name == "adam_mini":
        return AdamMini(groups, betas, head_width)
    if name == "lion":
        return Lion(groups, betas)
    if name == "muon":
        return MuonWithAdamW(groups, betas, compiled, muon_dtype)
    if name == "sgd":  # not fused: if float16 overflows in its first step, the fused one keeps unset momentum
        return torch.optim.SGD(groups, lr=0.0, momentum=betas[0])
    raise ValueError(f"no optimizer {name!r}: expected adamw, adam_mini, lion, muon or sgd")


def keep_state(optimizer, old):
    """`optimizer`, with the state that `old`, one of the same kind over fewer parameters, has of these."""
    if isinstance(optimizer, MuonWithAdamW):
        keep_state(optimizer.muon, old.muon)
        keep_state(optimizer.adamw, old.adamw)
    else:
        optimizer.state.update(old.state)
    return optimizer


def adamw(groups, betas):
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, betas=betas, fused=fused)


def with_gradient(group):
    return [p for p in group["params"] if p.grad is not None]


class Lion(torch.optim.Optimizer):
    """p <- (1 - lr wd) p - lr sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g (arXiv 2302.06675)."""

    def __init__(self, groups, betas):
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            params = with_gradient(group)
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            grads, m = [local(p.grad) for p in params], [local(self.state[p]["exp_avg"]) for p in params]
            params = [local(p) for p in params]
            update = torch._foreach_lerp(m, grads, 1 - beta1)
            torch._foreach_sign_(update)
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_add_(params, update, alpha=-lr)
            torch._foreach_lerp_(m, grads, 1 - beta2)


class AdamMini(torch.optim.Optimizer):
    """AdamW with one second moment per smallest dense block of the Hessian (Adam-mini, arXiv 2406.16793).

    v_b <- beta2 v_b + (1 - beta2) mean(g_b^2); all else is AdamW, whose settings it takes over. A block b is a head of
    Q and of K, a row of V, O and the feed-forward matrices (an output), a row of the embedding and of the output layer
    (a token), a whole tensor of the norms. Biases outside of the norms keep one value per element.

    The state has AdamW's names. `exp_avg_sq` broadcasts against its parameter, for Q and K against the parameter with
    its rows split into heads: `by_block(p, exp_avg_sq)` is p in the shape that fits.
    """

    def __init__(self, groups, betas, head_width=None, eps=1e-8):
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        for group in self.param_groups:
            for p in group["params"]:
                if group["block"] == "QK" and (not head_width or len(p) % head_width):
                    raise ValueError(f"head_width={head_width} does not divide the {len(p)} rows of a Q or K matrix")
        self.head_width = head_width

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if params := with_gradient(group):
                self.update(group, params)

    def update(self, group, params):
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        states, grads = [self.state_of(group["block"], p) for p in params], [p.grad for p in params]
        for state in states:
            state["step"] += 1
        m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_add_(v, [mean_square(g, w) for g, w in zip(grads, v, strict=True)], alpha=1 - beta2)
        # p <- p - lr (m / correction1) / (sqrt(v / correction2) + eps), all but m and p being small
        rates = torch._foreach_sqrt(v)
        torch._foreach_mul_(rates, [(1 - beta2 ** state["step"]) ** -0.5 for state in states])
        torch._foreach_add_(rates, eps)
        torch._foreach_reciprocal_(rates)
        torch._foreach_mul_(rates, [-lr / (1 - beta1 ** state["step"]) for state in states])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, update, rate in zip(params, m, rates, strict=True):
            by_block(p, rate).addcmul_(by_block(update, rate), rate)

    def state_of(self, block, p):
        state = self.state[p]
        if not state:
            heads = len(p) // self.head_width if block == "QK" else None
            state["step"] = 0  # a number, not a tensor: nothing waits for the device
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = p.new_zeros(second_moment_shape(block, p.shape, heads))
        return state


def second_moment_shape(block, shape, heads):
    """Shape of Adam-mini's second moment of a parameter; see AdamMini."""
    if block == "Norm":
        return [1] * len(shape)
    if len(shape) < 2:
        return shape
    rows, *rest = shape
    return [heads if block == "QK" else rows, *([1] * len(rest)), *([1] if block == "QK" else [])]


def by_block(tensor, v):
    """A parameter-shaped tensor viewed so that the second moment `v` broadcasts against it."""
    return tensor.unflatten(0, (len(v), -1)) if v.ndim > tensor.ndim else tensor


def mean_square(g, v):
    """Mean of g^2 over what shares one entry of `v`, in the shape of v."""
    if g.shape == v.shape:
        return g.square()
    g = by_block(g, v)
    shared = [dim for dim in range(g.ndim) if v.size(dim) == 1]
    numbers = math.prod(g.size(dim) for dim in shared)
    return torch.linalg.vector_norm(g, dim=shared, keepdim=True).square_().div_(numbers)  # no copy the size of g


def preconditioner(optimizer):
    """{parameter: diagonal of P, shaped like it}, where a step moves a parameter by its rate times P^(-1) momentum.

    AdamW and Adam-mini: sqrt(v_hat) + eps of the bias-corrected second moment, and infinite where v_hat is 0: that
    coordinate has never had a gradient. A parameter that has no state yet is left out. SGD: ones.
    Raises ValueError for another optimizer.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return {p: torch.ones_like(p) for group in optimizer.param_groups for p in group["params"]}
    if not isinstance(optimizer, torch.optim.AdamW | AdamMini):
        raise ValueError(f"{type(optimizer).__name__} has no diagonal preconditioner")
    diagonals = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if state := optimizer.state.get(p):
                v_hat = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                P = torch.where(v_hat > 0, v_hat.sqrt() + group["eps"], math.inf)
                diagonals[p] = P.expand_as(by_block(p, P)).reshape(p.shape).detach()
    return diagonals


def stability_threshold(name, beta1):
    """Learning rate times largest eigenvalue of P^(-1/2) H P^(-1/2) from which on a quadratic diverges.

    Adam's momentum is an average (arXiv 2207.14484): (2 + 2 beta1) / (1 - beta1). torch's SGD sums it: 2 + 2 beta1.
    """
    return (2 + 2 * beta1) / (1 if name == "sgd" else 1 - beta1)


class MuonWithAdamW:
    """Muon (blockwise/muon.py) for the matrices of QK, VO and FFN, AdamW for all else; the two step together.

    A block that has both, such as QK with biases, becomes two groups that carry the same `block` and `lr_mult`. Muon's
    orthogonalised update is scaled by 0.2 sqrt(max(rows, columns)) to the RMS of an AdamW update (Moonlight, arXiv
    2502.16982), so that one learning rate, one decay and the blocks' multipliers mean the same in both parts. Muon's
    momentum is 0.95, as there; betas are those of AdamW.
    """

    def __init__(self, groups, betas, compiled=False, dtype=torch.bfloat16):
        matrices, others = [], []
        for group in groups:
            for_muon, rest = [], []
            for p in group["params"]:
                (for_muon if group["block"] in MATRIX_BLOCKS and p.ndim == 2 else rest).append(p)
            plain = {key: value for key, value in group.items() if key != "betas"}  # Muon has one momentum for all
            matrices += [{**plain, "params": for_muon}] if for_muon else []
            others += [{**group, "params": rest}] if rest else []
        self.muon = Muon(matrices, compiled, dtype)
        self.adamw = adamw(others, betas)

    @property
    def param_groups(self):
        """The live groups of both parts: what is set in them holds for the next step."""
        return self.muon.param_groups + self.adamw.param_groups

    @property
    def state(self):
        return {**self.muon.state, **self.adamw.state}

    def step(self):
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none=True):
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self):
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state):
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def state_bytes(config, groups):
    """Bytes of state that `optimizer_for` with these arguments comes to hold, by a step on the meta device."""
    on_meta = []
    for group in groups:
        params = [torch.empty(p.shape, dtype=p.dtype, device="meta", requires_grad=True) for p in group["params"]]
        for p in params:
            p.grad = torch.empty_like(p)
        on_meta.append({**group, "params": params})
    optimizer = optimizer_for(config, on_meta)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if torch.is_tensor(value))
