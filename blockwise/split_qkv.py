"""Give the Q, K and V of a fused matrix two learning rates: one parameter of QK and one of VO in its place.

    from blockwise.split_qkv import merge_qkv, split_qkv
    split_qkv(model)                                        # before the optimizer is made
    optimizer = torch.optim.AdamW(param_groups(model, lr=6e-4, weight_decay=0.1))
    merge_qkv(copy.deepcopy(model)).save_pretrained(folder)  # the weights of the stock class

The forward pass is the model's own: `torch.nn.utils.parametrize` puts the matrix together from its parts whenever the
module reads it. With equal rates a step is bitwise that of the fused model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blockwise.blocks import block_type

Layout = tuple[int, int, int]  # periods in the output features; where V begins and ends in a period, the rest being QK


def thirds(attention: Any, rows: int) -> Layout:
    """All of Q, then K, then V, of equal height."""
    return 1, rows // 3 * 2, rows


def last(periods: int, height: int) -> Callable[[int], Layout]:
    """V is the last `height` rows of each period: of the whole (1), of a head, or of the heads that share K and V."""
    return lambda rows: (periods, rows // periods - height, rows // periods)


def falcon(a: Any, rows: int) -> Layout:
    """By group of heads (the new architecture), or one K and V for all, or by head."""
    periods = a.num_kv_heads if a.new_decoder_architecture else 1 if a.multi_query else a.num_heads
    return last(periods, a.head_dim)(rows)


# {class of the attention module and name of its fused projection: layout}. Source: the forward pass of each class, in
# modeling_NAME.py of transformers 5.24; CausalSelfAttention is nanoGPT's (model.py), minGPT's is the same.
LAYOUTS: dict[str, Callable[[Any, int], Layout]] = {
    "CausalSelfAttention.c_attn": thirds,
    "GPT2Attention.c_attn": thirds,
    "Attention.c_attn": thirds,  # openai
    "MptAttention.Wqkv": thirds,
    "GPTBigCodeAttention.c_attn": lambda a, rows: last(1 if a.multi_query else a.num_heads, a.head_dim)(rows),
    "BloomAttention.query_key_value": lambda a, rows: last(a.num_heads, a.head_dim)(rows),
    "FalconAttention.query_key_value": falcon,
    "PersimmonAttention.query_key_value": lambda a, rows: last(a.num_heads, a.head_dim)(rows),  # also Fuyu
    "GPTNeoXAttention.query_key_value": lambda a, rows: last(a.config.num_attention_heads, a.head_size)(rows),
    "GPTNeoXJapaneseAttention.query_key_value": lambda a, rows: last(a.num_attention_heads, a.head_size)(rows),
    "CodeGenAttention.qkv_proj": lambda a, rows: (a.mp_num, rows // a.mp_num // 3, rows // a.mp_num // 3 * 2),  # Q V K
    "Phi3Attention.qkv_proj": lambda a, rows: last(1, a.num_key_value_heads * a.head_dim)(rows),
    "Phi4MultimodalAttention.qkv_proj": lambda a, rows: last(1, a.num_key_value_heads * a.head_dim)(rows),
    "MiniMaxLightningAttention.qkv_proj": lambda a, rows: last(a.num_attention_heads, a.head_dim)(rows),
}


class FusedQKV(nn.Module):
    """A fused tensor from its QK and its VO part; dim: that of the output features, 1 for the weight of a Conv1D."""

    def __init__(self, layout: Layout, dim: int) -> None:
        super().__init__()
        (self.periods, self.start, self.stop), self.dim = layout, dim

    def forward(self, qk: Tensor, v: Tensor) -> Tensor:
        qk, v = (part.unflatten(self.dim, (self.periods, -1)) for part in (qk, v))
        before, after = qk.tensor_split([self.start], self.dim + 1)
        return torch.cat([before, v, after], self.dim + 1).flatten(self.dim, self.dim + 1)

    def right_inverse(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        before, v, after = fused.unflatten(self.dim, (self.periods, -1)).tensor_split(
            [self.start, self.stop], self.dim + 1
        )
        qk = torch.cat([before, after], self.dim + 1)
        return qk.flatten(self.dim, self.dim + 1), v.flatten(self.dim, self.dim + 1).contiguous()


def split_qkv(model: nn.Module) -> nn.Module:
    """Split every fused QKV projection of a model, weight and bias, in place; returns the model.

    Rates by `param_groups`, as of any other model; a model without fused projections is left as it is. The optimizer,
    DDP and FSDP come after. Raises ValueError, before anything is changed, for a projection whose layout LAYOUTS lacks,
    and for one whose weight another module has too.
    """
    projections = list(fused_projections(model))
    owners: dict[int, tuple[str, nn.Module]] = {}
    for path, projection, _ in projections:
        for tensor in projection.parameters(recurse=False):
            first, owner = owners.setdefault(id(tensor), (path, projection))
            if owner is not projection:
                raise ValueError(f"{path} and {first} share a matrix of Q, K and V: share the whole module instead")
    for _, projection, layout in projections:
        for name, tensor in list(projection.named_parameters(recurse=False)):
            columns = type(projection).__name__ == "Conv1D" and tensor.ndim == 2
            parametrize.register_parametrization(projection, name, FusedQKV(layout, int(columns)))
    return model


def fused_projections(model: nn.Module) -> Iterator[tuple[str, nn.Module, Layout]]:
    """(name, module, layout) of every projection with a fused name that is not split yet."""
    for name, attention in model.named_modules():
        for child, projection in attention.named_children():
            path = f"{name}.{child}".removeprefix(".")
            holds = next(projection.parameters(recurse=False), None) is not None
            if not holds or "parametrizations" in path or not is_refused(path if name else f"attn.{child}"):
                continue
            keys = [f"{cls.__name__}.{child}" for cls in type(attention).__mro__]
            layout = next((LAYOUTS[key] for key in keys if key in LAYOUTS), None)
            if layout is None:
                raise ValueError(
                    f"{path}: unknown layout of Q, K and V, {keys[0]}: expected one of {', '.join(LAYOUTS)}"
                )
            weight = projection.weight
            yield path, projection, layout(attention, weight.shape[type(projection).__name__ == "Conv1D"])


def is_refused(path: str) -> bool:
    """Whether `block_type` refuses the module's weight: a vision tower's, which is Other, it does not."""
    try:
        block_type(f"{path}.weight", unknown="Other")
    except ValueError:
        return True
    return False


def merge_qkv(model: nn.Module) -> nn.Module:
    """Undo `split_qkv` in place, for saving and for inference; returns the model.

    The matrices are new parameters that an optimizer of the split model does not know: to save while training, merge a
    copy.
    """
    for module in list(model.modules()):
        parts = dict(getattr(module, "parametrizations", {}))
        if parts and all(isinstance(part[0], FusedQKV) for part in parts.values()):
            whole = {
                name: nn.Parameter(getattr(module, name).detach(), any(p.requires_grad for p in part.parameters()))
                for name, part in parts.items()
            }
            # remove_parametrizations would change the class, which a deep copy shares with its model
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, tensor in whole.items():
                module.register_parameter(name, tensor)
    return model
