"""Cross-entropy written for the CPU: in pieces that fit the heap, and twice differentiable in few passes.

N positions, C width, V vocabulary. On other devices and under autocast torch's own cross-entropy is used.
"""

import torch
import torch.nn.functional as F

from blockwise.matmul import addmm_, linear, product

# Positions per piece of the loss on a CPU. The C library maps larger blocks again at every allocation, and the page
# faults then cost as much as the products.
LOSS_ROWS = 512


def softcapped(logits, cap):
    """cap tanh(logits / cap) (Gemma 2, arXiv 2408.00118), the logits themselves where cap is 0.

    Capped at least in float32: of bfloat16's 8 bits tanh would leave few to the large logits, which lie closest.
    """
    return cap * torch.tanh(at_least_float32(logits) / cap) if cap else logits


def at_least_float32(tensor):
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def cross_entropy(logits, targets, reduction, z_loss=0.0, counted=None):
    """Cross-entropy in nats of logits (N, V). Its gradient, but not its value, has the z-loss: z_loss (log Z)^2.

    Z is the softmax's normaliser (PaLM, arXiv 2204.02311, section 5); so reported losses stay comparable.
    counted: (N,), false for positions that are left out of the sum; None: all count.
    """
    if not z_loss and counted is None:
        return SummedCrossEntropy.apply(logits, targets) if reduction == "sum" else F.cross_entropy(logits, targets)
    loss = F.cross_entropy(logits, targets, reduction="none")  # (N,)
    if z_loss:
        z = z_loss * (loss + logits.gather(1, targets.unsqueeze(1)).squeeze(1)).square()
        loss = loss + (z - z.detach())
    if counted is not None:
        loss = loss * counted
    return loss.mean() if reduction == "mean" else loss.sum()


class SummedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of logits (N, V) against targets (N,), whose second derivative takes few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, targets):
        return F.cross_entropy(logits, targets, reduction="sum")

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return SoftmaxMinusTarget.apply(*ctx.saved_tensors)[0] * grad, None


class SoftmaxMinusTarget(torch.autograd.Function):
    """(p less the targets' one-hot rows, p), p = softmax(logits), (N, V). Its derivative diag(p) - p p' is the last."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, targets):
        p = logits.softmax(dim=-1)
        return p.scatter_add(1, targets.unsqueeze(1), p.new_full((1, 1), -1.0).expand(len(p), 1)), p

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # or zeros are made for p, as large as the logits
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, u, _):
        if torch.is_grad_enabled():
            raise RuntimeError("on a CPU the loss can be differentiated twice, not three times")
        (p,) = ctx.saved_tensors
        pu = p * u
        return pu.addcmul_(p, pu.sum(dim=-1, keepdim=True), value=-1), None


class FusedCrossEntropy(torch.autograd.Function):
    """Mean of `cross_entropy` for hidden states x (N, C) under the output matrix (V, C) against targets (N,).

    The gradient is made together with the loss, piece by piece, so that no logits are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, x, matrix, targets, softcap, z_loss, counted, rows):
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # products in its precision; what is summed, at least in float32
            x, matrix = (z.to(torch.get_autocast_dtype(kind)) for z in (x, matrix))
            with torch.autocast(kind, enabled=False):
                return FusedCrossEntropy.forward(ctx, x, matrix, targets, softcap, z_loss, counted, rows)
        loss, dx, dmatrix = at_least_float32(x.new_zeros(())), torch.empty_like(x), None
        ctx.count = number_of(counted, x)
        weights = None if counted is None else counted.to(x).unsqueeze(1)
        for h, y, dh, weight in in_pieces(rows, x, targets.unsqueeze(1), dx, weights):
            p = at_least_float32(softcapped(product(h, matrix), softcap))  # logits (rows, V), changed in place below
            slope = 1 - (p / softcap).square() if softcap else None
            top = p.amax(dim=-1, keepdim=True)  # (rows, 1)
            p -= top
            right = p.gather(1, y)  # (rows, 1)
            total = p.exp_().sum(dim=-1, keepdim=True)  # (rows, 1)
            for sign, column in ((-1, right), (1, total.log())):
                loss += sign * (column if weight is None else column * weight).sum()
            if z_loss:
                p *= 1 + 2 * z_loss * (top + total.log())  # log Z
            p.scatter_add_(1, y, -total)
            if softcap:
                p *= slope
            if weight is not None:
                p *= weight
            # p is the gradient of the logits now, but for a division by the total
            p = p.to(x.dtype)
            torch.div(product(p, matrix.T), total, out=dh)
            dmatrix = addmm_(dmatrix, (h / total).to(x.dtype).T, p.T)  # (C, V)
            del p  # before the next logits
        ctx.save_for_backward(dx, dmatrix.T)
        return loss / ctx.count

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("the training loss can be differentiated once; in eval mode twice")
        dx, dmatrix = ctx.saved_tensors
        grad = grad / ctx.count
        return dx * grad, torch.mul(dmatrix, grad, out=dmatrix.new_empty(dmatrix.shape)), None, None, None, None, None


def in_pieces(rows, first, *others):
    """Tensors side by side in pieces of so many rows; None stays None."""
    number = -(-len(first) // rows)
    return zip(*([None] * number if z is None else z.split(rows) for z in (first, *others)), strict=True)


def number_of(counted, x):
    """What a sum over the counted positions of x (N, C) is divided by; 1 if there are none."""
    return len(x) if counted is None else counted.sum().clamp(min=1)


def mean_cross_entropy(x, matrix, targets, softcap=0.0, z_loss=0.0, counted=None, rows=0):
    """Mean of `cross_entropy`, in nats per token, for hidden states x (N, C) under the output matrix (V, C).

    It can be differentiated twice. counted: (N,), whether a position counts; None: all do. rows: positions of a piece,
    of which the logits are in memory at once; 0: on a CPU LOSS_ROWS, elsewhere all.
    """
    if x.device.type != "cpu" and counted is None and not rows:
        return cross_entropy(softcapped(linear(x, matrix), softcap), targets, "mean", z_loss)
    rows = rows or (LOSS_ROWS if x.device.type == "cpu" else len(x))
    pieces = in_pieces(rows, x, targets, counted)
    sums = (cross_entropy(softcapped(linear(h, matrix), softcap), y, "sum", z_loss, c) for h, y, c in pieces)
    return sum(sums) / number_of(counted, x)


def training_loss(x, matrix, targets, softcap=0.0, z_loss=0.0, counted=None, rows=0):
    """The same for training. In pieces its gradient is made with it: it can be differentiated once.

    That is with rows, and on a CPU in float32.
    """
    if torch.is_grad_enabled() and (rows or (x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"))):
        return FusedCrossEntropy.apply(x, matrix, targets, softcap, z_loss, counted, rows or LOSS_ROWS)
    return mean_cross_entropy(x, matrix, targets, softcap, z_loss, counted, rows)
