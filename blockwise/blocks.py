"""Parameter name -> block type, and optimizer groups with one learning rate per block type.

    from blockwise.blocks import param_groups
    optimizer = torch.optim.AdamW(param_groups(model, lr=6e-4, weight_decay=0.1))

    python -m blockwise.blocks MODEL_ID_OR_DIR      # the split of a Hugging Face model, from its config alone

The block types and multipliers are those of "The Sharpness Disparity Principle in Transformers" (arXiv 2502.19002).
Only the command imports anything, so this file can be used, or copied, on its own. Hence its length; a third of it is
the table.
"""

# Peak learning rate of each block type, relative to the Norm blocks. The paper does not say which rate an untied output
# layer had; Head follows Emb because in trial runs Head at 1x lost far more than blockwise rates gain.
LR_MULT = {"Emb": 10.0, "QK": 8.0, "VO": 4.0, "FFN": 6.0, "Norm": 1.0, "Head": 10.0}
# Other: what the paper did not measure. It trains at the base rate; this project's own models have none of it.
BLOCKS = (*LR_MULT, "Other")

# Every kind of parameter: (what it is, its block type, why, modules, single parameters). A module is matched by the end
# of its path, a single parameter (not a module's weight or bias) by the end of its full name, both without layer
# numbers; the longest match wins. "x.*": everything below x, checked first. "^x": x at the top of the model only.
KINDS = (
    ("token embeddings", "Emb", "a row per token (or per token type)",
     "tok_emb embed_tokens wte embed_in word_embeddings word_embedding tok_embeddings tokens_embed embeddings "
     "token_type_embeddings task_type_embeddings input_embedding segment_embedding embed_tokens_per_layer "
     "ngram_embeddings encoder_hash_tok_embedding pronunciation_embed shape_embed transformer.w ^shared ^embed "
     "tokentype_embeddings value_embeds bigram_embed", "^value_embeds"),
    ("position embeddings", "Emb", "a row per position, added to the token's",
     "pos_emb wpe embed_positions position_embeddings positions_embed position_embedding",
     "position_embeddings.weights"),
    ("output layer", "Head", "projection to the vocabulary, where it is not tied to the embedding",
     "lm_head embed_out lm_heads lm_loss proj_out output_projection generator_lm_head lm_head.decoder "
     "predictions.decoder predictions pred_layer.proj ^decoder ^head ^output lm_head.w_out output_layer "
     "final_linear", ""),
    ("queries and keys", "QK", "projections that make the attention scores",
     "q_proj k_proj query_proj key_proj self.query self.key attention.query attention.key self_attn.query "
     "self_attn.key self_attention.query self_attention.key self_attention.query_key q_lin k_lin "
     "multi_head_attention.Wq multi_head_attention.Wk project_q project_k mlstm_layer.q mlstm_layer.k q_proj.linear "
     "k_proj.linear self_attention.experts.input_linear wq wk w_q w_k attn.c_q attn.c_k self_attention.linear_q "
     "cross_attention.linear_q linear_q_proj SelfAttention.q SelfAttention.k EncDecAttention.q EncDecAttention.k "
     "LocalSelfAttention.q LocalSelfAttention.k TransientGlobalSelfAttention.q TransientGlobalSelfAttention.k",
     "rel_attn.q rel_attn.k ^qk_bank"),
    ("low-rank queries", "QK", "two matrices whose product is the query projection, or is added to Q or K",
     "q_a_proj q_b_proj linear_q_adapter_list linear_k_adapter_list wq_a wq_b linear_q_down_proj linear_q_up_proj", ""),
    ("values and outputs", "VO", "what attention reads, and how it writes to the residual stream",
     "v_proj o_proj value_proj self.value attention.value self_attn.value self_attention.value v_lin out_lin "
     "project_v attention_out multi_head_attention.Wv attn.Wo mlstm_layer.v v_proj.linear o_proj.linear attn.c_proj "
     "attn.proj attention.dense self_attention.dense self_attn.dense multi_head_attention.dense "
     "attention.output.dense crossattention.output.dense self_attn.out_proj attn.out_proj attention.out_proj "
     "encoder_attn.out_proj cross_attn.out_proj linear_attn.out_proj mlstm_layer.out_proj attention.output "
     "v_proj_current v_proj_delayed self_attention.experts.output_linear self_attention.experts wv w_v attention.wo "
     "attention.w_out attn.c_v self_attention.linear_proj cross_attention.linear_proj multihead_attn.out_proj "
     "SelfAttention.v SelfAttention.o EncDecAttention.v EncDecAttention.o LocalSelfAttention.v LocalSelfAttention.o "
     "TransientGlobalSelfAttention.v TransientGlobalSelfAttention.o",
     "rel_attn.v rel_attn.o attention.dense_bias ^vo_bank"),
    ("low-rank outputs", "VO", "two matrices whose product is the output projection, or is added to V",
     "o_a_proj o_b_proj linear_v_adapter_list", ""),
    ("feed-forward", "FFN", "the matrices of the two-layer network after attention",
     "gate_proj up_proj down_proj gate_up_proj mlp mlp.c_fc mlp.c_proj mlp.dense_h_to_4h mlp.dense_4h_to_h mlp.fc_in "
     "mlp.fc_out fc1 fc2 mlp.Wi mlp.Wo feed_forward.w1 feed_forward.w2 feed_forward.w3 intermediate.dense "
     "output.dense ffns.lin1 ffns.lin2 ffn ffn.proj_up ffn.proj_up_gate ffn.proj_down ff.layer_1 ff.layer_2 "
     "feed_forward.dense.dense feed_forward.output.dense feed_forward.intermediate feed_forward.output "
     "ffn.lin1 ffn.lin2 feed_forward.key feed_forward.value w_in.w_0 w_in.w_1 ffn.w_out mlp.input_linear "
     "mlp.output_linear shared_mlp.input_linear shared_mlp.output_linear mlp.w1 mlp.w2 mlp.w3 mlp.fc mlp.fc_1 mlp.fc_2 "
     "mlp.proj mlp.linear1 mlp.linear2 mlp.linear_fc1 mlp.linear_fc2 layers.linear1 layers.linear2 ^linear1 ^linear2 "
     "DenseReluDense.wi DenseReluDense.wi_0 DenseReluDense.wi_1 DenseReluDense.wo mlp.wi mlp.wi_0 mlp.wi_1 mlp.wo",
     "^mlp_bank"),
    ("experts", "FFN", "feed-forward matrices, stacked or separate; shared experts too",
     "experts experts.w1 experts.w2 experts.w3 mlp.up_embed mlp.down_embed experts.fc_1 experts.fc_2 experts.proj "
     "shared_experts.fc_1 shared_experts.fc_2 shared_experts.proj shared_experts.w1 shared_experts.w2 "
     "shared_experts.w3 experts.linear_fc1 experts.linear_fc2 local_experts.linear_fc1 local_experts.linear_fc2 "
     "shared_experts.linear_fc1 shared_experts.linear_fc2 shared_mlp.w1 shared_mlp.w2 shared_mlp.w3",
     "experts.gate_up_proj experts.gate_proj experts.up_proj experts.down_proj experts.gate_up_proj_bias "
     "experts.up_proj_bias experts.down_proj_bias experts.mlp.w1 experts.mlp.v1 experts.mlp.w2 "
     "shared_experts.gate_proj shared_experts.up_proj shared_experts.down_proj experts.mlp.w3 inner_experts.w1_EFD "
     "inner_experts.w2_EDF inner_experts.w3_EFD"),
    ("norms", "Norm", "scales and shifts of normalised activations; every module whose name ends in norm, any case",
     "*norm norm1 norm2 post_norm1 post_norm2 norm_f norm_1 norm_2 norm_ffn norm_mlstm ln ln1 ln2 ln_1 ln_2 ln_f "
     "ln_attn ln_mlp ln_cross_attn ln_out pre_ln layer_norm1 layer_norm2 layernorm1 layernorm2 layer_norm_emb "
     "layernorm_embedding layernorm_before_attention layernorm_before_ffn norms norm3 norm_q norm_k",
     "norm.scale layer_norm_weight layer_norm_bias"),
    ("keys and values in one", "Other", "feeds both K (8x) and V (4x), so neither rate fits",
     "kv_a_proj_with_mqa kv_a_proj kv_b_proj kv_proj wkv_a wkv_b self_attention.linear_kv cross_attention.linear_kv "
     "linear_kv_down_proj linear_kv_up_proj", ""),
    ("routers", "Other", "logits that choose experts, not a feed-forward matrix",
     "router router_gate gate.wg router.layer router.gate router.classifier router_mlp.* mlp.gate mixer.gate moe.gate "
     "ffn.gate block_sparse_moe.gate feed_forward.gate gate.down_proj shared_expert_gate mlp.shared_expert_gate",
     "expert_bias e_score_correction_bias gate.global_scale gate.router_states_scale"),
    ("gates", "Other", "sigmoid factors on the output of attention, a mixer or a message",
     "self_attn.gate_proj o_proj.gate_proj self_attn.g_proj g_a_proj g_b_proj q_gate_proj output_gate "
     "q_message_gate.* k_message_gate.* v_message_gate.* mlp_message_gate.* attention.receptance "
     "feed_forward.receptance attn.ve_gate ^smear_gate attention.w_g attention.o_gate shared_experts.gate",
     "self_attn.gate_bias cross_attn_attn_gate cross_attn_mlp_gate shared_experts.gate_weight ^ve_gate_bank"),
    ("sinks and score biases", "Other", "added to attention scores: neither a projection nor an embedding",
     "sink_proj r_proj relative_position_bias.* rel_logits_proj.* relative_pos_embeddings relative_attention_bias",
     "self_attn.sinks position_bias.relative_attention_bias rel_attn.r rel_attn.r_r_bias rel_attn.r_s_bias "
     "rel_attn.r_w_bias rel_attn.seg_embed self_attn.A"),
    ("token selection", "Other", "choose which tokens attention sees, or compress them",
     "indexer.* compressor.*", ""),
    ("state-space mixers", "Other", "projections of a recurrence; the paper's models have none",
     "mamba.in_proj mamba.out_proj mamba.x_proj mamba.dt_proj mixer.in_proj mixer.out_proj mixer.x_proj mixer.dt_proj "
     "temporal_block.linear_x temporal_block.linear_y temporal_block.linear_out rg_lru.*",
     "A_log D dt_bias mamba.x_proj_weight mamba.dt_proj_weight mamba.dt_proj_bias"),
    ("linear attention", "Other",
     "fused projections, decays and write rates; its own q, k, v and o projections are QK and VO as elsewhere",
     "linear_attn.in_proj_qkvz linear_attn.in_proj_qkv linear_attn.in_proj_ba linear_attn.in_proj_z "
     "linear_attn.in_proj_a linear_attn.in_proj_b linear_attn.a_proj linear_attn.b_proj linear_attn.g_proj "
     "self_attn.b_proj self_attn.f_proj self_attn.dt_proj forget_gate.* mlstm_layer.igate_preact "
     "mlstm_layer.fgate_preact mlstm_layer.ogate_preact",
     "attention.time_decay attention.time_first attention.time_mix_key attention.time_mix_value "
     "attention.time_mix_receptance feed_forward.time_mix_key feed_forward.time_mix_receptance"),
    ("convolutions", "Other", "short filters along the sequence",
     "conv1d conv_1d conv.conv conv.in_proj conv.out_proj conv_qk_depthwise conv_qk_grouped sconv.weight_proj",
     "sconv.static_weight"),
    ("learned scalars", "Other", "scales and shifts of activations; the paper's models have none",
     "act_fn",
     "act_fn.alpha_p act_fn.alpha_n qk_norm.temp lm_head.logit_scale input_residual post_attention_residual lambda_1 "
     "lambda_2 self_attn.lambda_q1 self_attn.lambda_k1 self_attn.lambda_q2 self_attn.lambda_k2 self_attn.sqk "
     "self_attn.s_gate mlp.suv_gate mlp.suv_up hidden_states_scale hidden_states_bias residual_scale residual_bias "
     "input_hidden_states_scale input_hidden_states_bias z_L_init layer_scalar ^resid_lambdas ^x0_lambdas "
     "^smear_lambda ^backout_lambda ^post_lambdas ^scalars attention.sq attention.sk feed_forward.sw1 feed_forward.sw3 "
     "lm_head.sz attn_alpha mlp_alpha"),
    ("extra residual paths", "Other", "projections between streams or layers, besides attention and feed-forward",
     "attn_hc.* ffn_hc.* hc_head.* altup.* laurel.* altup_projections altup_unembed_projections per_layer_input_gate "
     "per_layer_projection per_layer_model_projection layers.linear attention_input.* mlp_input.* final_input.* "
     "message_input.* gate_up_proj_adapter_list",
     "^mudd_w1 ^mudd_w2 ^mudd_b2 ^_mudd_gate_scale ^mudd_gate_w1 ^mudd_gate_w2 ^mudd_gate_b2"),
    ("projections of embeddings and outputs", "Other", "dense layers between the residual stream and a table",
     "embedding_hidden_mapping_in embeddings_project map_inputs_layer pre_projection post_projection "
     "patch_embedding_projection masked_embedding.centroids lm_head.dense transform.dense predictions.dense "
     "generator_predictions.dense pooler pooler.dense eh_proj", "transformer.mask_emb"),
    ("task heads", "Other", "for classes, rewards, spans: the paper measured the output over a vocabulary",
     "score classifier classifier.dense classifier.out_proj classification_head.dense classification_head.out_proj "
     "pre_classifier qa_outputs seq_relationship logits_proj summary head.dense discriminator_predictions.dense "
     "discriminator_predictions.dense_prediction reward_head value_head v_head rm_linear", ""),
    ("language adapters", "Other", "small layers inside a layer",
     "adapter_modules.*", ""),
    ("other modalities", "Other", "the paper measured language models only",
     "vision_tower.* vision_model.* visual.* audio_tower.* image_encoder.* multi_modal_projector.* embed_vision.* "
     "embed_audio.* vision_embedder.* embed_tokens_extend.* visual_projection.* vision_embed_tokens.*", ""),
)  # fmt: skip

BLOCK_OF = {end: block for _, block, _, modules, _ in KINDS for end in modules.split()}
PARAMETER_OF = {end: block for _, block, _, _, parameters in KINDS for end in parameters.split()}

# Q, K and V in one matrix: part QK, part VO, so neither learning rate fits.
FUSED_QKV = (
    "attn.c_attn", "query_key_value", "qkv_proj", "Wqkv", "attn.qkv", "attn.in_proj", "self_attn.in_proj",
    "attention.in_proj", "in_proj_weight", "in_proj_bias", "w_qkv", "wqkv", "linear_qkv", "linear_qkv_down_proj",
)  # fmt: skip
# The two parts into which blockwise.split_qkv splits it, by the names that torch.nn.utils.parametrize gives them:
SPLIT_QKV = {"original0": "QK", "original1": "VO"}

# Names that wrappers add. Last part of the name of a module's own tensor, also when quantised or reparametrised:
LEAVES = (
    "weight", "bias", "qweight", "qzeros", "scales", "g_idx", "W_q", "weight_scale", "weight_scale_inv", "input_scale",
    "weight_g", "weight_v", "original", "original0", "original1",
)  # fmt: skip
# Parts for modules around a module; those with a leading underscore (_orig_mod, _fsdp_wrapped_module) are dropped too:
WRAPPERS = ("module", "base_model", "base_layer", "original_module", "parametrizations", "token_adapter")
# Parts for PEFT adapters; the adapter's name follows:
ADAPTERS = (
    "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "modules_to_save", "ia3_l",
    "vera_lambda_b", "vera_lambda_d", "oft_R", "boft_R", "boft_s", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lora_E",
    "ln_tuning_layers", "trainable_tokens_delta",
)  # fmt: skip


def block_type(name: str, fused_qkv: str | None = None, block_of: dict[str, str] | None = None,
               unknown: str = "error") -> str:  # fmt: skip
    """Block type of a parameter, e.g. 'blocks.3.attn.q_proj.weight' -> 'QK'.

    name: as in `named_parameters()`; parts added by DDP, FSDP, torch.compile, PEFT and quantisers are ignored.
    fused_qkv: the block type that a fused QKV matrix counts as.
    block_of: {end of a path, without layer numbers: block type}; takes precedence over the table.
    unknown: the block type of names that are not in the table, or "error".
    Raises KeyError for a name that is not in the table, ValueError for a fused QKV without `fused_qkv` and for an
    argument that is not a block type.
    """
    check_blocks(fused_qkv, block_of, unknown)
    path, is_module = path_of(name)
    table = BLOCK_OF if is_module else PARAMETER_OF
    if stated := stated_block(name, block_of):
        return stated
    for part in path:
        if f"{part}.*" in BLOCK_OF:
            return BLOCK_OF[f"{part}.*"]
    for end in ends_of(path):
        if end in table:
            return table[end]
        if end in FUSED_QKV:
            part = name.rpartition(".parametrizations.")[2].rpartition(".")[2]
            if part in SPLIT_QKV:
                return SPLIT_QKV[part]
            if fused_qkv is not None:
                return fused_qkv
            cannot_split = name.endswith(("in_proj_weight", "in_proj_bias"))  # of torch.nn.MultiheadAttention
            split = "" if cannot_split else "split it by blockwise.split_qkv.split_qkv(model), or "
            raise ValueError(
                f"{name} holds Q, K and V in one matrix, which cannot have two learning rates: {split}say which block "
                'it counts as, e.g. fused_qkv="QK"'
            )
    if is_module and path and path[-1].lower().endswith("norm"):
        return BLOCK_OF["*norm"]
    if unknown != "error":
        return unknown
    if name.endswith("_flat_param"):
        raise KeyError(f"parameter {name}: FSDP flattened several into one: wrap the model with use_orig_params=True")
    hint = f'add the end of its path, block_of={{"{".".join(path[-2:])}": {guess(path)}}}, or ' if path else ""
    raise KeyError(f'no block type for parameter {name}: {hint}pass unknown="Other"')


def stated_block(name: str, block_of: dict[str, str] | None) -> str | None:
    """The block type that `block_of` gives a parameter, by the longest matching end of its path, or None."""
    path, is_module = path_of(name)
    block_of = block_of or {}
    for end in [*(ends_of([*path, name.split(".")[-1]]) if is_module else []), *ends_of(path)]:
        if end in block_of:
            return block_of[end]
    return None


def guess(path: list[str]) -> str:
    """Block type to suggest in an error: that of the table's entries with the same last part, however it is spelled."""
    last = normalised(path[-1]) if path else ""
    near = {block for end, block in BLOCK_OF.items() if normalised(end.rpartition(".")[2]) == last}
    return f'"{near.pop()}"' if len(near) == 1 else "one of " + ", ".join(BLOCKS)


def normalised(word: str) -> str:
    return word.lower().replace("_", "").rstrip("0123456789")


def check_blocks(fused_qkv: str | None, block_of: dict[str, str] | None, unknown: str) -> None:
    """Raise ValueError for an argument that should be a block type and is not, and for an end that no path can have."""
    if not isinstance(block_of or {}, dict):
        raise ValueError(f"block_of={block_of!r}: expected a dict of block types by the end of a path")
    for end in block_of or {}:
        *start, last = str(end).removeprefix("^").split(".")
        odd = [part for part in (*start, last) if not part or part.isdigit() or part in WRAPPERS or "*" in part]
        if odd or any(part.startswith("_") for part in start):
            raise ValueError(f"block_of[{end!r}]: expected the end of a path, without layer numbers, wrappers and *")
    given = [(f"block_of[{end!r}]", block) for end, block in (block_of or {}).items()]
    for argument, block in (*given, ("fused_qkv", fused_qkv), ("unknown", unknown)):
        if block not in BLOCKS and (argument, block) not in (("fused_qkv", None), ("unknown", "error")):
            raise ValueError(f"{argument}={block!r} is not a block type: expected one of {', '.join(BLOCKS)}")


def path_of(name: str) -> tuple[list[str], bool]:
    """(path without layer numbers and wrappers, is_module: whether it is a module's, without "weight" or "bias")."""
    parts, is_module, rest = [], False, name.split(".")
    while rest:
        part, *rest = rest
        if part in ADAPTERS and rest and rest[0] not in LEAVES:
            rest = rest[1:]
            is_module = not rest
        elif not part.isdigit() and (not part.startswith("_") or not rest) and part not in WRAPPERS:
            parts.append(part)
    # "weight.original0" has two such parts; "weight3" is one of Transformer Engine's grouped experts
    while parts and (parts[-1] in LEAVES or parts[-1].rstrip("0123456789") in ("weight", "bias")):
        parts, is_module = parts[:-1], True
    return parts, is_module


def ends_of(path: list[str]) -> list[str]:
    """Ends of a path, longest first; the first is the whole path with ^, for entries that match only at the top."""
    top = path[1:] if path[:1] == ["model"] and len(path) == 2 else path
    return ["^" + ".".join(top), *(".".join(path[i:]) for i in range(len(path)))]


def blocks_of(model_or_named_parameters: object, fused_qkv: str | None = None, block_of: dict[str, str] | None = None,
              unknown: str = "error") -> dict[str, list[tuple]]:  # fmt: skip
    """{block type: [(name, parameter), ...]} in the order of BLOCKS, without the blocks that have no parameters.

    A parameter with several names counts once; an output layer tied to the embedding is Emb. Two matrices hold more
    than their names say and are Other unless `block_of` names them: a k_proj that also computes V (its attention has
    an o_proj but no v_proj, or v_proj is the same matrix; `fused_qkv` decides it too), and a q_proj that also computes
    a gate (it has twice as many rows as o_proj has columns). Raises what `block_type` raises, and ValueError where
    these cannot be recognised: FSDP 1 or ZeRO-3 has flattened the weights, or a list lacks the matrix to compare with.
    """
    return group_by_block(model_or_named_parameters, fused_qkv, block_of, unknown, frozen_apart=False)


def named_parameters(model_or_named_parameters: object) -> list[tuple]:
    """[(name, parameter), ...]; a model's shared parameter is listed under each of its names."""
    method = getattr(model_or_named_parameters, "named_parameters", None)
    try:
        pairs = list(method(remove_duplicate=False) if method else model_or_named_parameters)  # type: ignore[arg-type]
    except TypeError:
        pairs = list(method()) if method else [model_or_named_parameters]  # a named_parameters() without that argument
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(
                f"expected a model, or (name, parameter) pairs as in model.named_parameters(), got "
                f"{type(model_or_named_parameters).__name__} of {type(pair).__name__}: pass the model itself"
            )
    return pairs


def group_by_block(model_or_named_parameters: object, fused_qkv: str | None, block_of: dict[str, str] | None,
                   unknown: str, frozen_apart: bool = True) -> dict[str, list[tuple]]:  # fmt: skip
    """As `blocks_of`; with `frozen_apart`, parameters that need no gradient are "frozen", whatever their names."""
    check_blocks(fused_qkv, block_of, unknown)
    named = named_parameters(model_or_named_parameters)
    two_in_one = matrices_of_two(named, fused_qkv, hasattr(model_or_named_parameters, "named_parameters"))
    # weight_norm's parts have the names of split_qkv's; its scale is smaller than its direction, Q and K larger than V
    sizes = {name: p.numel() for name, p in named if name.endswith(tuple(SPLIT_QKV)) and p.ndim != 1}
    weight_norm = [name for name in sizes if 0 < sizes.get(f"{name[:-1]}0", 0) < sizes.get(f"{name[:-1]}1", 0)]
    table: dict[int, tuple] = {}  # id -> (block, name, parameter)
    for name, parameter in named:
        earlier = table.get(id(parameter))
        if earlier and earlier[0] != "Head":
            continue  # the first of several names decides
        special = two_in_one.get(attention_of(name))
        if frozen_apart and not parameter.requires_grad:
            block = "frozen"
        elif special and not stated_block(name, block_of):
            if special not in BLOCKS:
                raise ValueError(f"{name}: {special}")
            block = special
        else:
            whole = name.rpartition(".")[0] if name in weight_norm else name
            block = block_type(whole, fused_qkv, block_of, unknown)
        if not earlier or block == "Emb":
            table[id(parameter)] = (block, name, parameter)
    blocks = {block: [(n, p) for b, n, p in table.values() if b == block] for block in (*BLOCKS, "frozen")}
    return {block: members for block, members in blocks.items() if members}


def attention_of(name: str) -> tuple[str | None, str | None]:
    """(name of the attention module, q_proj, k_proj, v_proj or o_proj) of a parameter; (None, None) of another."""
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        before, dot, _ = name.partition(f".{projection}.")
        if dot:
            return before, projection
    return None, None


def matrices_of_two(named: list[tuple], fused_qkv: str | None,
                    whole_model: bool) -> dict[tuple[str | None, str | None], str]:  # fmt: skip
    """{(attention, projection): block type} of each q_proj and k_proj that holds two things; see `blocks_of`.

    Where that cannot be decided, the reason stands in place of the block type.
    """
    rows: dict[str, dict] = {}  # attention -> {projection: size}
    columns: dict[str, dict] = {}
    matrices: dict[tuple, tuple[int, bool]] = {}  # (attention, projection) -> (id, whether it has lost its shape)
    for name, parameter in named:
        attention, projection = attention_of(name)
        path = [part for part in path_of(name)[0] if part != "linear"]
        shape = tuple(getattr(parameter, "ds_shape", getattr(parameter, "shape", ())))  # ZeRO-3 leaves `shape` empty
        adapter = not set(ADAPTERS).isdisjoint(name.split("."))
        if attention is None or path[-1] != projection or (len(shape) != 2 and (adapter or name[-7:] != ".weight")):
            continue
        flat = len(shape) != 2 or matrices.get((attention, projection), (0, False))[1]
        matrices[attention, projection] = id(parameter), flat
        if "lora_A" not in name:
            rows.setdefault(attention, {})[projection] = shape[0] if shape else 0
        if "lora_B" not in name:
            columns.setdefault(attention, {})[projection] = shape[-1] if shape else 0
    special: dict[tuple[str | None, str | None], str] = {}
    for attention, height in rows.items():
        width = columns.get(attention, {})
        if {"k_proj", "o_proj"} <= height.keys() and "v_proj" not in height:
            no_v = "Other" if whole_model else NEIGHBOUR.format("v_proj", "V")
            special[attention, "k_proj"] = fused_qkv or no_v
        if matrices.get((attention, "k_proj")) == matrices.get((attention, "v_proj"), ()):  # one module by two names
            special[attention, "k_proj"] = fused_qkv or "Other"
        if {"q_proj", "k_proj", "o_proj"} <= height.keys():  # MLA, whose heads differ in width, has no k_proj
            if any(matrices[attention, projection][1] for projection in ("q_proj", "o_proj")):
                special[attention, "q_proj"] = FLATTENED
            elif height["q_proj"] == 2 * width.get("o_proj", 0):
                special[attention, "q_proj"] = "Other"
        elif not whole_model and "o_proj" not in height and height.get("q_proj", 0) > width.get("q_proj", 0) > 0:
            special[attention, "q_proj"] = NEIGHBOUR.format("o_proj", "a gate")
    return special


FLATTENED = (
    "its shape is lost (FSDP 1 or ZeRO-3 flattens weights), and it may hold a gate: make the groups before wrapping, "
    'or pass block_of={"q_proj": "QK"}'
)
NEIGHBOUR = "the list has no {} beside it, so it may hold {} too: pass the whole model, or name it in block_of"


def param_groups(model_or_named_parameters: object, lr: float, lr_mult: dict[str, float] | None = None,
                 weight_decay: float = 0.0, wd_mult: dict[str, float] | None = None, fused_qkv: str | None = None,
                 block_of: dict[str, str] | None = None, unknown: str = "error") -> list[dict]:  # fmt: skip
    """Groups for any torch.optim optimizer, one per block type, each with its own learning rate and weight decay.

    lr: learning rate of a block whose multiplier is 1 (Norm and Other, by default).
    lr_mult: {block: multiplier}; blocks that it does not name keep LR_MULT's.
    weight_decay, wd_mult: a block's decay is weight_decay * wd_mult.get(block, 1). AdamW shrinks weights by lr * decay
        per step, so a learning-rate multiplier scales that too: the paper's rule.
    fused_qkv, block_of, unknown: see `block_type`.

    A group also carries `block` and `lr_mult`, so that a schedule can set
    `group["lr"] = schedule(step) * group["lr_mult"]`, and `members`, which `load_state` compares. Parameters that need
    no gradient are left out, whatever their names, and so are blocks without any others.
    Raises KeyError for an unknown parameter or block type, ValueError for a fused QKV without `fused_qkv` and for a
    rate, decay or multiplier that is negative or not finite.
    """
    check_number("lr", lr)
    check_number("weight_decay", weight_decay)
    check_multipliers("lr_mult", lr_mult)
    check_multipliers("wd_mult", wd_mult)
    rates = {**LR_MULT, "Other": 1.0, **(lr_mult or {})}
    table = group_by_block(model_or_named_parameters, fused_qkv, block_of, unknown)
    return [
        {
            "params": [p for _, p in members],
            "block": block,
            "lr_mult": rates[block],
            "lr": lr * rates[block],
            "weight_decay": weight_decay * (wd_mult or {}).get(block, 1.0),
            "members": checksum([name for name, _ in members]),
        }
        for block, members in table.items()
        if block != "frozen"
    ]


def check_multipliers(argument: str, given: object) -> None:
    """Raise KeyError for an entry that is not a block type, ValueError for anything but a dict of numbers or None."""
    if not isinstance(given or {}, dict):
        raise ValueError(f"{argument}={given!r}: expected a dict, block type -> number")
    for block, value in (given or {}).items():  # type: ignore[attr-defined]
        if block not in BLOCKS:
            raise KeyError(f"no block type {block!r}: expected one of {', '.join(BLOCKS)}")
        check_number(f"{argument}[{block!r}]", value)


def check_number(argument: str, value: object) -> None:
    """Raise ValueError for anything but a finite number of at least 0."""
    try:
        valid = bool(0 <= value < float("inf"))  # type: ignore[operator]  # a tensor compares too
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"{argument}={value!r}: expected a finite number, at least 0")


def checksum(names: list[str]) -> int:
    """A hash of names without what wrappers add; the same in every process, unlike `hash`."""
    number, inner = 0, [[part for part in n.split(".") if part[:1] != "_" and part not in WRAPPERS] for n in names]
    for char in " ".join(map(".".join, inner)):
        number = (number * 1_000_003 + ord(char)) % (2**61 - 1)
    return number


def load_state(optimizer: object, state: dict) -> None:
    """`optimizer.load_state_dict(state)` for groups made by `param_groups`: restores the moments, keeps the settings.

    `load_state_dict` alone would also bring back the saved learning rates, `lr_mult` and weight decay, and would assign
    moments by position even if a group's members have changed: that raises ValueError here.
    """
    for group, saved in zip(optimizer.param_groups, state.get("param_groups", ()), strict=False):  # torch counts them
        if saved.get("members", group.get("members")) != group.get("members"):
            raise ValueError(
                f"group {group.get('block')} has other parameters than in the saved state, and moments go by position: "
                "expected the model, block_of and fused_qkv of the run that saved it"
            )
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, current in zip(optimizer.param_groups, settings, strict=True):
        if "initial_lr" in group:  # a scheduler's base rate
            group["initial_lr"] = current["lr"]
        group.update(current)


def layer_of(name: str) -> int | None:
    """Layer index in this project's models: 'blocks.3.attn.q_proj.weight' -> 3; None outside the layers."""
    return next((int(part) for part in name.split(".")[1:-1] if part.isdigit()), None)


def describe_blocks(model_or_named_parameters: object, fused_qkv: str | None = None,
                    block_of: dict[str, str] | None = None, unknown: str = "error") -> str:  # fmt: skip
    """A table of the blocks: rate, tensors, parameters, examples; frozen ones last. Raises what `blocks_of` raises."""
    table = group_by_block(model_or_named_parameters, fused_qkv, block_of, unknown)
    rows = [("block", "rate", "tensors", "parameters", "examples")]
    for block, members in table.items():
        ends = list(dict.fromkeys(".".join(path_of(name)[0][-2:]) for name, _ in members))
        examples = ", ".join(ends[:3]) + (f" and {len(ends) - 3} more" if ends[3:] else "")
        rate = "-" if block == "frozen" else f"{LR_MULT.get(block, 1.0):g}x"
        rows.append((block, rate, str(len(members)), f"{sum(p.numel() for _, p in members):,}", examples))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]] for row in rows)
    return "\n".join("  ".join(line) for line in lines)


HELP = """usage: python -m blockwise.blocks MODEL_ID_OR_DIR [--as=json|torchtitan|nemo|megatron] [--rates=FILE]
                                   [--split_qkv] [--fused_qkv=BLOCK] [--unknown=BLOCK] [--block_of.END=BLOCK]

Print the block type of every parameter of a Hugging Face model, or write the split in another trainer's format.
Only config.json is read, no weights. --split_qkv: split a fused QKV matrix first, as blockwise.split_qkv does.
--rates: multipliers and AdamW's settings from a rates.json that tune.py wrote, instead of the defaults."""


def main(arguments: list[str]) -> str:
    """The text that the command prints. Raises KeyError or ValueError for the user's mistakes."""
    options: dict[str, str] = {}
    ends, models = {}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument in ("--help", "-h"):
            return HELP
        if argument == "--split_qkv" or (equals and key in ("--as", "--rates", "--fused_qkv", "--unknown")):
            options[key[2:]] = value
        elif key.startswith("--block_of."):
            ends[key.removeprefix("--block_of.")] = value
        elif argument.startswith("-"):
            options_text = "--as=, --rates=, --split_qkv, --fused_qkv=, --unknown= or --block_of.END="
            raise ValueError(f"{argument}: expected {options_text}")
        else:
            models.append(argument)
    if len(models) != 1:
        raise ValueError("expected one model: python -m blockwise.blocks MODEL_ID_OR_DIR")
    if "rates" in options and "as" not in options:
        raise ValueError("--rates: expected --as= too, the trainer to write them for")
    fused_qkv, unknown = options.get("fused_qkv"), options.get("unknown", "error")
    check_blocks(fused_qkv, ends, unknown)
    model = without_weights(models[0])
    if "split_qkv" in options:
        from blockwise.split_qkv import split_qkv

        split_qkv(model)
    if "as" in options:
        from blockwise.exporters import export, read_rates

        rates = read_rates(options["rates"]) if "rates" in options else {}
        return export(model, options["as"], fused_qkv, ends, unknown, **rates)
    return f"{type(model).__name__}\n{describe_blocks(model, fused_qkv, ends, unknown)}"


def without_weights(model_id_or_folder: str) -> object:
    """A Hugging Face model on the meta device, of the class named by its config."""
    try:
        import transformers

        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.from_pretrained(model_id_or_folder)
        classes = [getattr(transformers, name, None) for name in config.architectures or ()]
        make = classes[0] if classes and classes[0] else transformers.AutoModelForCausalLM.from_config
        with transformers.modeling_utils.torch.device("meta"):  # the torch that transformers has loaded
            return make(config)
    except ImportError as error:
        raise ValueError(f"{model_id_or_folder}: {error}: pip install 'transformers>=5'") from None
    except Exception as error:  # OSError, ValueError, KeyError, AttributeError ...: transformers has no one type
        raise ValueError(f"{model_id_or_folder}: no model can be built from its config: {error}") from None


if __name__ == "__main__":
    import sys

    try:
        print(main(sys.argv[1:]))
    except (KeyError, ValueError) as error:
        print("error: " + " ".join(str(error.args[0]).split()), file=sys.stderr)
        sys.exit(2)
