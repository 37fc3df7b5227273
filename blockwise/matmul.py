"""Float32 matrix products on AMD's processors by oneDNN.

There torch's own products go to MKL, whose kernels for other makers' processors reach half of oneDNN's rate. oneDNN is
in torch too, behind an operator without a derivative, which this file gives it (in reverse mode). Everywhere else, and
where a product is too small to pay for the call, torch's own are used. N rows, C inputs, M outputs.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

LEAST_ROWS = 64  # below, the call itself, 15 us, takes longer than what it saves


def on_amd():
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
ONEDNN = both and hasattr(torch.ops.mkldnn, "_linear_pointwise") and on_amd()

# An operator of our own around it: inductor compiles the original for constant weights only
if not hasattr(torch.ops.blockwise, "product"):  # a second copy of this file finds the first one's
    library = torch.library.Library("blockwise", "FRAGMENT")
    library.define("product(Tensor x, Tensor weight) -> Tensor")
    library.impl("product", lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""), "CPU")
    torch.library.register_fake("blockwise::product", lambda x, w: x.new_empty(x.size(0), w.size(0)), lib=library)


def use_onednn(x):
    """Whether products of the rows of x, (..., C), go to oneDNN."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return ONEDNN and plain and x.numel() >= LEAST_ROWS * x.size(-1) > 0


def linear(x, weight, bias=None):
    """F.linear: x (..., C), weight (M, C), bias (M,) or None -> (..., M). Differentiable any number of times."""
    if not use_onednn(x):
        return F.linear(x, weight, bias)
    y = Product.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias


def fused_linear(x, *linears):
    """The outputs of several linear layers on one input, by one matrix product."""
    weight = torch.cat([layer.weight for layer in linears])
    bias = None if linears[0].bias is None else torch.cat([layer.bias for layer in linears])
    return linear(x, weight, bias).split([layer.out_features for layer in linears], dim=-1)


def product(x, weight):
    """x @ weight.T, (N, C) and (M, C) -> (N, M), outside of autograd. oneDNN copies a transposed x."""
    return torch.ops.blockwise.product(x, weight) if use_onednn(x) else x @ weight.T


def addmm_(total, x, weight):
    """total, (N, M) or None for 0, with product(x, weight) added in place. BLAS adds while it multiplies.

    The total of products in bfloat16 is in float32.
    """
    if total is None:
        y = product(x, weight)
        return y.float() if y.dtype.itemsize < 4 else y
    return total.add_(product(x, weight)) if use_onednn(x) or x.dtype != total.dtype else total.addmm_(x, weight.T)


class Product(torch.autograd.Function):
    """x @ weight.T as `product` has it; its gradients are such products again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight):
        return product(x, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors  # (N, C), (M, C); grad: (N, M)
        dx = Product.apply(grad, weight.T) if ctx.needs_input_grad[0] else None
        dweight = None
        if ctx.needs_input_grad[1]:  # the narrower one is copied
            dweight = Product.apply(x.T, grad.T).T if x.size(1) < grad.size(1) else Product.apply(grad.T, x.T)
        return dx, dweight
