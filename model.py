"""GPT-2 and LLaMA over shared parts.

Q, K, V and O are separate parameters and no leaf name means two things, so that a name alone tells the block type
(blockwise/blocks.py). Nothing here lowers precision below the parameters' own: in float64 the whole model is.

Shapes: B batch, T time, S time including the cache, C width (n_embd), H heads, K key-value heads, D head width,
F feed-forward width (n_inner), V vocabulary.
"""

import math
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from blockwise.attention import document_starts, for_fused_kernels, largest_logits, rotary_table, rotate
from blockwise.blocks import block_type
from blockwise.checkpoint import weights_of
from blockwise.losses import at_least_float32, mean_cross_entropy, softcapped, training_loss
from blockwise.matmul import fused_linear, linear
from blockwise.sampling import sample

# cuDNN plans anew for every length of the cache, which takes longer than the step itself
NOT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class ModelConfig:
    """What a model computes; `n_kv_head`, `n_inner`, `norm_eps` and `tie_weights` are resolved before they come here.

    dropout, z_loss and qk_clip act in training only, doc_end and loss_rows also in evaluation, residual_dtype wherever
    autocast is on, init_std and block_init_std on new weights; all others belong to the weights.
    doc_end: the id that ends a document, which neither attention nor loss crosses; None: they see no documents.
    """

    model_type: str  # gpt2 or llama
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    n_inner: int
    bias: bool
    dropout: float
    rope_theta: float
    norm_eps: float
    tie_weights: bool
    qk_norm: bool = False
    logit_softcap: float = 0.0
    qk_clip: float = 0.0
    z_loss: float = 0.0
    doc_end: int | None = None
    residual_dtype: str = "float32"
    loss_rows: int = 0
    init_std: float = 0.02
    block_init_std: dict = field(default_factory=dict)

    @classmethod
    def of(cls, config, **more):
        """The model's part of a run's config, of a checkpoint's model_config or of a Pretrained's shape; and more."""
        values = {"dropout": 0.0} | (config if isinstance(config, dict) else vars(config)) | more
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @property
    def head_width(self):
        return self.n_embd // self.n_head


class KVCache:
    """Keys and values of the positions seen so far, one pair of tensors a layer: (B, K, block_size, D)."""

    def __init__(self, config, batch_size, device, dtype):
        shape = (2, config.n_layer, batch_size, config.n_kv_head, config.block_size, config.head_width)
        self.keys, self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer, k, v):
        """Store k and v, (B, K, T, D), behind what is there; returns all of them, (B, K, S, D)."""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Linear(nn.Linear):
    def forward(self, x):
        return linear(x, self.weight, self.bias)


class RMSNorm(nn.RMSNorm):
    """Computes in float32 at least, whatever the precision of x and, under FSDP, of the gain; returns that of x."""

    def forward(self, x):
        y = F.rms_norm(at_least_float32(x), self.normalized_shape, at_least_float32(self.weight), self.eps)
        return y.type_as(x)


class LayerNorm(nn.LayerNorm):
    """As RMSNorm."""

    def forward(self, x):
        bias = None if self.bias is None else at_least_float32(self.bias)
        y = F.layer_norm(at_least_float32(x), self.normalized_shape, at_least_float32(self.weight), bias, self.eps)
        return y.type_as(x)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.dropout = config.dropout
        self.D = config.head_width
        kv_width = config.n_kv_head * self.D
        self.q_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.k_proj = Linear(config.n_embd, kv_width, bias=config.bias)
        self.v_proj = Linear(config.n_embd, kv_width, bias=config.bias)
        self.o_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.qk_norm, self.qk_clip = config.qk_norm, config.qk_clip
        if config.qk_norm:  # one gain for all heads, before the rotation, as in Qwen3 and Gemma 3
            self.q_norm = RMSNorm(self.D, eps=config.norm_eps)
            self.k_norm = RMSNorm(self.D, eps=config.norm_eps)
        if config.qk_clip:  # since blockwise.qk_clip last read it
            self.register_buffer("largest_logits", torch.zeros(config.n_head), persistent=False)

    def forward(self, x, rotary=None, cache=None, mask=None):
        B, T, C = x.shape
        q, k, v = fused_linear(x, self.q_proj, self.k_proj, self.v_proj)  # (B, T, C), (B, T, K D), (B, T, K D)
        q, k, v = (z.view(B, T, -1, self.D).transpose(1, 2) for z in (q, k, v))  # (B, H, T, D), (B, K, T, D) twice
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if self.qk_clip and self.training:
            self.largest_logits.copy_(torch.maximum(self.largest_logits, largest_logits(q, k, mask)))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, D)
        k, v = for_fused_kernels(q, k, v, mask)
        y = F.scaled_dot_product_attention(
            q, k, v, mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=T > 1 and mask is None,  # with a cache, more than one new position only ever comes first
            enable_gqa=k.size(1) != q.size(1),
        )  # fmt: skip
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.o_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """tanh-GELU for GPT-2, SwiGLU (arXiv 2002.05202) for LLaMA."""

    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.gated = config.model_type == "llama"
        if self.gated:
            self.gate_proj = Linear(config.n_embd, config.n_inner, bias=config.bias)
        self.up_proj = Linear(config.n_embd, config.n_inner, bias=config.bias)
        self.down_proj = Linear(config.n_inner, config.n_embd, bias=config.bias)

    def forward(self, x):
        if self.gated:
            gate, up = fused_linear(x, self.gate_proj, self.up_proj)  # (B, T, F) each
            hidden = F.silu(gate) * up
        else:
            hidden = F.gelu(self.up_proj(x), approximate="tanh")  # (B, T, F)
        return F.dropout(self.down_proj(hidden), self.dropout, self.training)


def norm(config):
    if config.model_type == "llama":
        return RMSNorm(config.n_embd, eps=config.norm_eps)
    return LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = norm(config)
        self.attn = Attention(config, layer)
        self.norm2 = norm(config)
        self.mlp = MLP(config)

    def forward(self, x, rotary=None, cache=None, mask=None):
        x = x + self.attn(self.norm1(x), rotary, cache, mask)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Decoder-only language model. `model(tokens)` gives logits, `model(tokens, targets)` the mean loss in nats."""

    def __init__(self, config, activation_checkpointing=False):
        """activation_checkpointing: keep each block's input, recompute the rest in the backward pass (1604.06174)."""
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.tok_emb = nn.Embedding(config.vocab_size, config.n_embd)
        if config.model_type == "gpt2":
            self.pos_emb = nn.Embedding(config.block_size, config.n_embd)
        else:
            cos, sin = rotary_table(config)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.n_active_layers = config.n_layer  # fewer in an architecture warm-up (blockwise.layer_warmup)
        self.norm_f = norm(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.tok_emb.weight
        self.apply(partial(self._init, self._init_stds()))

    def _init_stds(self):
        """{module with a matrix: standard deviation of its new weights}, by block type; a tied output layer is Emb."""
        config, stds = self.config, {}
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                block = "Emb" if config.tie_weights and module is self.lm_head else block_type(f"{name}.weight")
                stds[module] = config.block_init_std.get(block, config.init_std)
        return stds

    def _init(self, stds, module):
        """N(0, std); output projections of the residual branches by 1/sqrt(2 n_layer) narrower (GPT-2, sec. 2.3)."""
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=stds[module])
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # comes after its own linear layers
            for layer in (module.attn.o_proj, module.mlp.down_proj):
                nn.init.normal_(layer.weight, std=stds[layer] / math.sqrt(2 * self.config.n_layer))

    @classmethod
    def from_checkpoint(cls, checkpoint, config=None, ema=False):
        """The model of a checkpoint (blockwise.checkpoint.load_checkpoint), all of its layers active.

        config: a ModelConfig that takes the place of the checkpoint's own, to train on with, say, another dropout.
        ema: with the moving average of the weights; raises UserError if the checkpoint has none.
        """
        model = cls(config or ModelConfig.of(checkpoint["model_config"]))
        model.load_state_dict(weights_of(checkpoint, ema))
        return model

    @classmethod
    def from_pretrained(cls, source, config=None):
        """The model of Hugging Face weights (blockwise.huggingface.Pretrained). config: as in `from_checkpoint`."""
        model = cls(config or ModelConfig.of(source.shape))
        model.load_state_dict(source.weights(model.state_dict()))
        return model

    def set_active_layers(self, layers):
        """Let the first `layers` blocks compute and learn, and no others."""
        self.n_active_layers = layers
        for layer, block in enumerate(self.blocks):
            block.requires_grad_(layer < layers)

    def forward(self, tokens, targets=None, cache=None):
        """tokens, targets: (B, T). Returns logits (B, T, V), or, given targets, their mean cross-entropy."""
        T = tokens.size(1)
        start = 0 if cache is None else cache.length
        if start + T > self.config.block_size:
            raise ValueError(f"{start + T} tokens where block_size is {self.config.block_size}")
        x = self.tok_emb(tokens)  # (B, T, C)
        rotary = mask = begins = None
        if self.config.doc_end is not None and cache is None:
            begins = document_starts(tokens, self.config.doc_end)  # (B, T)
            mask = (begins[:, None, :, None] == begins[:, None, None, :]).tril()  # (B, 1, T, T)
        if self.config.model_type == "gpt2" and begins is not None:
            x = x + self.pos_emb(torch.arange(T, device=x.device) - begins)  # every document has its first positions
        elif self.config.model_type == "gpt2":
            x = x + self.pos_emb.weight[start : start + T]
        else:
            rotary = self.cos[start : start + T], self.sin[start : start + T]  # (T, D) each
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(getattr(torch, self.config.residual_dtype))  # what every block adds to has its precision
        x = F.dropout(x, self.config.dropout, self.training)
        for block in islice(self.blocks, self.n_active_layers):
            if self.activation_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, rotary, None, mask, use_reentrant=False)
            else:
                x = block(x, rotary, cache, mask)
        if cache is not None:
            cache.length += T
        x = self.norm_f(x)
        if targets is None:
            return self.logits(x)
        return self.loss(x, targets, None if begins is None else tokens != self.config.doc_end)

    def logits(self, x):
        """(..., C) -> (..., V)"""
        return softcapped(self.lm_head(x), self.config.logit_softcap)

    def loss(self, x, targets, counted=None):
        """Mean cross-entropy, in nats per token, of the last hidden states x (B, T, C) against targets (B, T).

        In eval mode it can be differentiated twice; in training, on a CPU, only once, and there the gradient has the
        z-loss. counted: (B, T), false where a target is left out of the mean; None: all count.
        """
        loss, z_loss = (training_loss, self.config.z_loss) if self.training else (mean_cross_entropy, 0.0)
        x, targets = x.flatten(0, 1), targets.flatten()  # (B T, C), (B T,)
        counted = None if counted is None else counted.flatten()
        config = self.config
        return loss(x, self.lm_head.weight, targets, config.logit_softcap, z_loss, counted, config.loss_rows)

    def flops_per_token(self):
        """Floating-point operations of a training step per token: 6 a matrix weight, plus attention (2204.02311)."""
        c, layers = self.config, self.n_active_layers
        modules = [self.lm_head, *(m for block in self.blocks[:layers] for m in block.modules())]
        weights = sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear))
        return 6 * weights + 12 * layers * c.n_embd * c.block_size

    @torch.inference_mode()
    def generate(self, tokens, max_new_tokens, temperature=1.0, top_k=None, generator=None, n_ids=None, top_p=1.0):
        """Continue tokens (B, T), T >= 1, by sampling; yields each new column (B, 1).

        temperature, top_k, top_p: as in `sample`. n_ids: ids from here on are never sampled (a padded vocabulary).
        A full context drops its older half and fills the cache again.
        """
        size, kind = self.config.block_size, tokens.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.lm_head.weight.dtype
        cache, fed = None, tokens[:, -size:]
        context = fed
        for _ in range(max_new_tokens):
            if cache is None or cache.length + fed.size(1) > size:
                fed = context = context[:, -size:] if cache is None else context[:, -(size // 2 or 1) :]
                cache = KVCache(self.config, len(tokens), tokens.device, dtype)
            with sdpa_kernel(NOT_CUDNN):
                logits = self(fed, cache=cache)[:, -1].float()  # (B, V)
            fed = sample(logits[:, :n_ids], temperature, top_k, generator, top_p)  # (B, 1)
            context = torch.cat((context, fed), dim=1)
            yield fed
