"""Muon over all matrices of one shape at once, on one process or shared by many.

N matrices, R rows, C columns.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F


def local(tensor):
    """What this process holds of a tensor that FSDP shards; any other one as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def orthogonal(matrices):
    """Newton-Schulz iteration of torch.optim.Muon for many matrices at once, (N, rows, columns), in their precision.

    Brings all singular values near 1: five steps of the quintic of https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """torch.optim.Muon for all matrices of one shape at once, whose state and groups it has.

    dtype: of the iteration. torch's is bfloat16, which a CPU without bfloat16 products emulates some 20 times slower.
    Of several processes each orthogonalises a share of them and sends it to the others, in dtype: step() is then a
    collective. They hold the same matrices and gradients, or, under FSDP, a share of the rows of each.
    """

    def __init__(self, groups, compiled=False, dtype=torch.bfloat16):
        super().__init__(groups, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype
        self.orthogonal = torch.compile(orthogonal, dynamic=False) if compiled else orthogonal

    @torch.no_grad()
    def step(self):
        by_shape = {}  # {shape: [(group, those of its parameters that have it)]}
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                by_shape.setdefault(shape, []).append((group, params))
        for shape, parts in by_shape.items():
            updates = self.updates([p for _, params in parts for p in params])
            for group, params in parts:
                lr, params = group["lr"], [local(p) for p in params]
                mine, updates = updates[: len(params)], updates[len(params) :]
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
                torch._foreach_add_(params, mine, alpha=-lr * 0.2 * math.sqrt(max(shape)))

    def updates(self, params):
        """The orthogonalised Nesterov momentum of parameters of one shape, of each what this process holds of it."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        grads, buffers = [local(p.grad) for p in params], [local(self.state[p]["momentum_buffer"]) for p in params]
        momentum = self.defaults["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        pieces = torch.stack(torch._foreach_lerp(grads, buffers, momentum)).to(self.dtype)
        if hasattr(params[0], "to_local"):
            pieces = self.share_rows(pieces, len(params[0]), params[0].device_mesh.get_group())
        elif pieces.device.type != "meta":  # there a dry run asks for the state alone, on one process
            pieces = self.share(pieces) if dist.is_initialized() else self.orthogonal(pieces)
        return pieces.float().unbind()

    def share(self, matrices):
        """matrices, (N, rows, columns), which all processes have: each makes as many orthogonal, and all have all."""
        size, n = dist.get_world_size(), len(matrices)
        matrices = F.pad(matrices, (0, 0, 0, 0, 0, -n % size))
        mine = self.orthogonal(matrices.chunk(size)[dist.get_rank()].contiguous()).contiguous()
        dist.all_gather_into_tensor(matrices, mine)
        return matrices[:n]

    def share_rows(self, pieces, rows, group):
        """The same for pieces, (N, rows here, columns), of matrices of so many rows: exchanged for whole ones."""
        size, (n, height, _) = dist.get_world_size(group), pieces.shape
        most = -(-rows // size)  # of a process, the first ones of which have it
        sent = F.pad(pieces, (0, 0, 0, most - height, 0, -n % size))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)  # from each process its rows of my matrices
        mine = received.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)  # (N / size, size most, columns)
        mine = F.pad(self.orthogonal(mine[:, :rows]), (0, 0, 0, size * most - rows))
        sent = mine.unflatten(1, (size, most)).transpose(0, 1).flatten(0, 1)
        dist.all_to_all_single(received, sent.contiguous(), group=group)
        return received[:n, :height]
