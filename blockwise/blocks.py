"""Parameter name -> block type, and optimizer groups with one learning rate per block type.

    from blockwise.blocks import param_groups
    optimizer = torch.optim.AdamW(param_groups(model, lr=6e-4, weight_decay=0.1))

The block types and multipliers are those of "The Sharpness Disparity Principle in Transformers"
(arXiv 2502.19002). Nothing is imported here: the file can be used, or copied, on its own.
"""

# Peak learning rate of a block type over that of the Norm blocks. The paper does not say what an untied output
# layer got; Head goes with Emb because in trial runs Head at 1x lost far more than blockwise rates gain.
LR_MULT = {"Emb": 10.0, "QK": 8.0, "VO": 4.0, "FFN": 6.0, "Norm": 1.0, "Head": 10.0}
BLOCKS = tuple(LR_MULT)

# The end of a module's path -> block type. One component where the leaf's name says it all, two where it does not.
BLOCK_OF = {
    # ours; Hugging Face's LLaMA, Mistral, Qwen2, Qwen3, Gemma 1-3 and OLMo 1-2 share most of the names
    "tok_emb": "Emb", "pos_emb": "Emb", "embed_tokens": "Emb",
    "q_proj": "QK", "k_proj": "QK",
    "v_proj": "VO", "o_proj": "VO",
    "gate_proj": "FFN", "up_proj": "FFN", "down_proj": "FFN",
    "norm1": "Norm", "norm2": "Norm", "norm_f": "Norm",
    "norm": "Norm", "input_layernorm": "Norm", "post_attention_layernorm": "Norm",
    "pre_feedforward_layernorm": "Norm", "post_feedforward_layernorm": "Norm", "q_norm": "Norm", "k_norm": "Norm",
    "lm_head": "Head",
    # Hugging Face's GPT-2
    "wte": "Emb", "wpe": "Emb", "attn.c_proj": "VO", "mlp.c_fc": "FFN", "mlp.c_proj": "FFN",
    "ln_1": "Norm", "ln_2": "Norm", "ln_f": "Norm",
    # Hugging Face's GPT-NeoX
    "embed_in": "Emb", "embed_out": "Head", "attention.dense": "VO",
    "mlp.dense_h_to_4h": "FFN", "mlp.dense_4h_to_h": "FFN", "final_layer_norm": "Norm",
}  # fmt: skip

# Q, K and V in one matrix: half QK, half VO, so it can have neither's learning rate.
FUSED_QKV = ("attn.c_attn", "attention.query_key_value")


def block_type(name, fused_qkv=None):
    """Block type of a parameter, e.g. 'blocks.3.attn.q_proj.weight' -> 'QK'.

    name: as `named_parameters()` gives it; prefixes that DDP, FSDP or torch.compile put in are ignored.
    fused_qkv: the block type that a fused QKV matrix shall count as.
    Raises KeyError for a name that the table lacks, ValueError for a fused QKV that `fused_qkv` does not settle.
    """
    module = [part for part in name.split(".")[:-1] if not part.startswith("_")]  # drops _orig_mod and the like
    for length in (1, 2):
        suffix = ".".join(module[-length:])
        if suffix in BLOCK_OF:
            return BLOCK_OF[suffix]
    if ".".join(module[-2:]) in FUSED_QKV:
        if fused_qkv is None:
            raise ValueError(
                f"{name} holds Q, K and V in one matrix, which cannot have two learning rates: split it, "
                'or say which block it shall count as, e.g. fused_qkv="QK"'
            )
        return fused_qkv
    raise KeyError(f"no block type for parameter {name}: add the end of its module's path to BLOCK_OF")


def blocks_of(model_or_named_parameters, fused_qkv=None):
    """{block type: [(name, parameter), ...]} in the order of BLOCKS, without the blocks that have no parameters.

    A parameter with several names counts once; an output layer tied to the embedding is Emb.
    Raises what `block_type` raises, and ValueError for a `fused_qkv` that is no block type.
    """
    if fused_qkv is not None and fused_qkv not in BLOCKS:
        raise ValueError(f"fused_qkv={fused_qkv!r} is no block type: expected one of {', '.join(BLOCKS)}")
    named = getattr(model_or_named_parameters, "named_parameters", None)
    named = list(named() if named else model_or_named_parameters)
    found = {}  # id -> (block, name, parameter)
    for name, parameter in named:
        block = block_type(name, fused_qkv)
        if id(parameter) not in found or (found[id(parameter)][0] == "Head" and block == "Emb"):
            found[id(parameter)] = (block, name, parameter)
    table = {block: [(n, p) for b, n, p in found.values() if b == block] for block in BLOCKS}
    return {block: members for block, members in table.items() if members}


def param_groups(model_or_named_parameters, lr, lr_mult=None, weight_decay=0.0, wd_mult=None, fused_qkv=None):
    """Groups for any torch.optim optimizer, one a block type, each with its own learning rate and decay.

    lr: learning rate of a block whose multiplier is 1 (Norm, by default).
    lr_mult: {block: multiplier} over LR_MULT, for the entries that it names.
    weight_decay, wd_mult: a block's decay is weight_decay * wd_mult[block], 1 where it is not named. AdamW shrinks
        weights by lr * decay a step, so a learning-rate multiplier scales the decay too: the paper's rule.
    fused_qkv: see `block_type`.

    A group also carries `block` and `lr_mult`, so that a schedule can set
    `group["lr"] = schedule(step) * group["lr_mult"]`. Parameters that need no gradient are left out.
    Raises KeyError for a parameter or a block type that is not known, ValueError for an unsettled fused QKV.
    """
    for unknown in {**(lr_mult or {}), **(wd_mult or {})}.keys() - set(BLOCKS):
        raise KeyError(f"no block type {unknown!r}: expected one of {', '.join(BLOCKS)}")
    lr_mult = {**LR_MULT, **(lr_mult or {})}
    return [
        {
            "params": [p for _, p in members if p.requires_grad],
            "block": block,
            "lr_mult": lr_mult[block],
            "lr": lr * lr_mult[block],
            "weight_decay": weight_decay * (wd_mult or {}).get(block, 1.0),
        }
        for block, members in blocks_of(model_or_named_parameters, fused_qkv).items()
    ]


def layer_of(name):
    """Index of the layer of a parameter of ours: 'blocks.3.attn.q_proj.weight' -> 3; None outside of the layers."""
    return next((int(part) for part in name.split(".")[1:-1] if part.isdigit()), None)
