"""Small models in float64 and their curvature as explicit matrices."""

import itertools

import numpy as np
import torch
from torch.func import functional_call

from blockwise.curvature.hessian import Batch
from model import ModelConfig, Transformer

V, T, N = 5, 4, 4
MODELS = list(itertools.product(("gpt2", "llama"), (True, False)))


def make(model_type, tied):
    """A model of every kind of parameter (biases, grouped heads), with weights large enough to matter."""
    torch.manual_seed(3)
    config = ModelConfig(
        model_type, V, T, n_layer=2, n_head=2, n_kv_head=1, n_embd=4, n_inner=6, bias=True, dropout=0.1,
        rope_theta=10000.0, norm_eps=1e-5, tie_weights=tied,
    )  # fmt: skip
    model = Transformer(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=torch.float64))
    return model


def make_batch(number=0, sequences=N):
    tokens = torch.randint(0, V, (sequences, T + 1), generator=torch.Generator().manual_seed(number + 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], list(range(sequences)), sequences * T, number)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def explicit_hessian_of(model, batch):
    names = [name for name, _ in model.named_parameters()]
    params = [p.detach() for p in model.parameters()]
    model.eval()

    def loss(z):
        pieces = z.split([p.numel() for p in params])
        weights = {name: piece.view_as(p) for name, piece, p in zip(names, pieces, params, strict=True)}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return functional_call(model, weights, (batch.x, batch.y))

    return torch.autograd.functional.hessian(loss, flat(params))


def explicit_fisher(model, batch):
    """Diagonal of the mean over positions of J^T (diag p - p p^T) J, with J the Jacobian of a position's logits."""
    params = list(model.parameters())
    model.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = model(batch.x).flatten(0, 1)  # (B, V)
    total = 0
    for z in logits:
        p = z.softmax(0).detach()
        J = torch.stack([flat(torch.autograd.grad(z_v, params, retain_graph=True)) for z_v in z])  # (V, n)
        total += p @ J.square() - (p @ J).square()
    model.train()
    return total / len(logits)


def slices(model):
    """{name: slice of the flat parameters}"""
    ends = np.cumsum([p.numel() for p in model.parameters()])
    return {name: slice(end - p.numel(), end) for end, (name, p) in zip(ends, model.named_parameters(), strict=True)}
