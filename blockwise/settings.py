"""Every key of a training run: type, default, meaning. Loads no torch, so that --help answers at once."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from blockwise import UserError
from blockwise.blocks import LR_MULT
from blockwise.keys import ABOVE_0, BELOW_1, PATH, Keys, Range
from blockwise.rules import BY_VOCABULARY, RULES, Shape
from blockwise.schedules import SCHEDULES
from blockwise.spelling import close, did_you_mean

BLOCKS = tuple(LR_MULT)  # without Other, of which our models have nothing

# Fixed by a checkpoint's weights: a resumed run takes these from it and refuses to change them.
ARCHITECTURE = (
    "model_type", "n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "block_size", "vocab_size", "bias",
    "rope_theta", "norm_eps", "tie_weights", "qk_norm", "logit_softcap",
)  # fmt: skip

# The rest of what a ModelConfig holds: it acts while a model trains, or before, and follows the command.
TRAINING_ONLY = (
    "dropout", "qk_clip", "z_loss", "doc_end", "init_std", "block_init_std", "residual_dtype", "loss_rows",
)  # fmt: skip

# Fixed for the whole run: which layers it starts with, and when the others are activated.
ARCH_WARMUP = ("arch_warmup", "arch_warmup_start", "arch_warmup_groups", "arch_warmup_interval")

# Fixed for the whole run with lr_mult=auto: when its multipliers are measured, and the rule.
AUTO_MULT = ("auto_mult_step", "auto_mult_max", "auto_mult_power")

# Defaults that depend on the optimizer; AdamW's hold where it has no entry. Lion's are those of its authors for language
# models (arXiv 2302.06675) and of the paper; SGD's weight decay is not decoupled, so 0.1 would be huge.
BY_OPTIMIZER = {
    "adamw": {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95},
    "lion": {"weight_decay": 1.0, "beta1": 0.95, "beta2": 0.98},
    "sgd": {"weight_decay": 0.0},
}
DRAWN = tuple(block for block in BLOCKS if block != "Norm")  # block types whose weights start at random
RULED = ("lr_mult", "wd_mult", "block_beta2", "block_init_std")  # what lr_rule fills
MIXTURE = "a data set's name, or a mixture like a:0.7,b:0.3 of different names with shares of at least 0, not all 0"
PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "hf:DIR_OR_ID")
INIT_FROM = ("scratch", "resume", "auto", *PRETRAINED)


class PerBlock(dict):
    """{block: number} of every block, of which only the entries in `given` were set by hand: a rule fills the others."""

    given = frozenset()

    def __or__(self, changes):
        new = PerBlock({**self, **changes})
        new.given = self.given | changes.keys()
        return new


def given_only(value):
    """The value of a key, of a PerBlock only what was set by hand."""
    return {entry: value[entry] for entry in value if entry in value.given} if isinstance(value, PerBlock) else value


@dataclass
class TrainConfig(Keys):
    """The keys of train.py. Names that nanoGPT has keep its meaning and default."""

    # fmt: off
    # model
    model_type: Annotated[Literal["gpt2", "llama"], "architecture; gpt2: learned positions, LayerNorm, GELU; llama: RoPE, RMSNorm, SwiGLU"] = "gpt2"
    n_layer: Annotated[int, "transformer blocks", Range(1)] = 12
    n_head: Annotated[int, "attention heads; must divide n_embd", Range(1)] = 12
    n_kv_head: Annotated[int | None, "key-value heads; must divide n_head (None: n_head)", Range(1)] = None
    n_embd: Annotated[int, "width of the residual stream", Range(1)] = 768
    n_inner: Annotated[int | None, "width of the feed-forward layer (None: 4 n_embd)", Range(1)] = None
    block_size: Annotated[int, "context length in tokens", Range(1)] = 1024
    vocab_size: Annotated[int | None, "rows of the embedding (None: the data's, padded up to a multiple of 64)", Range(1)] = None
    dropout: Annotated[float, "dropout probability, on embeddings, attention and residual branches", BELOW_1] = 0.0
    bias: Annotated[bool, "biases in linear layers and LayerNorms"] = False
    rope_theta: Annotated[float, "base of the rotary angles (llama)", ABOVE_0] = 10000.0
    norm_eps: Annotated[float | None, "epsilon of the norms (None: 1e-5 for gpt2, 1e-6 for llama)", ABOVE_0] = None
    tie_weights: Annotated[bool | None, "output layer shares the embedding's matrix (None: True for gpt2, False for llama)"] = None
    qk_norm: Annotated[bool, "RMSNorm of each head's queries and keys, before the rotation, with a gain that counts as Norm"] = False
    logit_softcap: Annotated[float, "bound on the size of the final logits: cap * tanh(logits / cap); 0: off", Range(0)] = 0.0

    # data
    dataset: Annotated[str, "folder in data_dir that holds train.bin and val.bin, or a mixture of several by share of the tokens: a:0.7,b:0.3", PATH] = "openwebtext"
    data_dir: Annotated[str, "folder that holds the data sets", PATH] = "data"
    doc_mask: Annotated[bool, "separate documents: attention, positions and loss do not cross an end-of-text token"] = False
    batch_size: Annotated[int, "sequences per micro-step and process; lower it when out of memory", Range(1)] = 12
    gradient_accumulation_steps: Annotated[int, "micro-steps per optimizer step over all processes; a multiple of their number", Range(1)] = 40

    # optimizer and learning rate
    optimizer: Annotated[Literal["adamw", "adam_mini", "lion", "muon", "sgd"], "optimizer; adam_mini: one second moment per head or row; muon: Muon for matrices inside the blocks, AdamW for the rest"] = "adamw"
    muon_dtype: Annotated[Literal["bfloat16", "float32"], "precision of Muon's orthogonalisation; float32 is some 20 times as fast on a CPU that emulates bfloat16"] = "bfloat16"
    learning_rate: Annotated[float, "peak learning rate of the Norm blocks; every other block has a multiple of it", Range(0)] = 6e-4
    blockwise: Annotated[bool, "one learning rate per block type; False: every lr_mult is 1, the plain baseline"] = True
    lr_rule: Annotated[Literal[tuple(RULES)], "rule that fills the entries of lr_mult, wd_mult, block_beta2 and block_init_std that are not given, from the shape; see docs/methods.md. With blockwise=False there is none"] = "paper"
    lr_mult: Annotated[dict[Literal[BLOCKS], float] | Literal["auto"], "peak learning rate of each block type as a multiple of learning_rate; one entry: --lr_mult.QK=6; auto: set from measured sharpness", Range(0)] = field(default_factory=lambda: PerBlock(LR_MULT))
    auto_mult_step: Annotated[int | None, "lr_mult=auto: step of the measurement; multipliers are 1 before it and rise over as many steps after it (None: 2% of max_iters)", Range(1)] = None
    auto_mult_max: Annotated[float, "lr_mult=auto: largest multiplier; the smallest is 1", Range(1)] = 10.0
    auto_mult_power: Annotated[float, "lr_mult=auto: exponent p in (sharpness of Norm / sharpness of the block)^p", ABOVE_0] = 0.7
    weight_decay: Annotated[float | None, "weight decay of every parameter, decoupled except in sgd (None: 0.1; lion 1.0, sgd 0)", Range(0)] = None
    wd_mult: Annotated[dict[Literal[BLOCKS], float], "weight decay of each block type as a multiple of weight_decay; --wd_mult.Norm=0 exempts norms", Range(0)] = field(default_factory=lambda: PerBlock.fromkeys(BLOCKS, 1.0))
    beta1: Annotated[float | None, "decay of the first moment; sgd: momentum (None: 0.9; lion 0.95)", BELOW_1] = None
    beta2: Annotated[float | None, "decay of the second moment; lion: of its only moment (None: 0.95; lion 0.98)", BELOW_1] = None
    block_beta2: Annotated[dict[Literal[BLOCKS], float], "beta2 of single block types: --block_beta2.Emb=0.99; the others have beta2. Not for sgd, nor for what Muon itself updates", BELOW_1] = field(default_factory=dict)
    init_std: Annotated[float, "standard deviation of new weights; output projections of the residual branches have 1/sqrt(2 n_layer) of it", Range(0)] = 0.02
    block_init_std: Annotated[dict[Literal[DRAWN], float], "init_std of single block types: --block_init_std.Emb=0.1; a tied output layer is Emb", Range(0)] = field(default_factory=dict)
    ema_decay: Annotated[float, "decay of a moving average of the weights, evaluated beside them as val/loss_ema; 0: none", BELOW_1] = 0.0
    grad_clip: Annotated[float, "maximum global gradient norm; 0: no clipping", Range(0)] = 1.0
    arch_warmup: Annotated[bool, "architecture warm-up: start with a fraction of the layers and activate the rest after LR warmup"] = False
    arch_warmup_start: Annotated[float, "fraction of the layers that are active at the start", Range(0, 1, "()")] = 0.5
    arch_warmup_groups: Annotated[int, "groups in which the other layers are activated, the first one when LR warmup ends", Range(1)] = 4
    arch_warmup_interval: Annotated[int, "steps between the activation of two groups", Range(1)] = 500
    qk_clip: Annotated[float, "QK-Clip threshold: after a step, Q and K of heads whose largest attention logit exceeded it are scaled down; 0: off", Range(0)] = 0.0
    z_loss: Annotated[float, "weight of (log Z)^2 in the objective, not in the reported losses; PaLM uses 1e-4; 0: off", Range(0)] = 0.0
    max_iters: Annotated[int, "optimizer steps", Range(0)] = 600000
    schedule: Annotated[Literal[SCHEDULES], "learning rate after warmup; wsd: constant, then linear decay"] = "cosine"
    wsd_decay: Annotated[float, "fraction of lr_decay_iters, at its end, over which wsd decays to the floor", Range(0, 1)] = 1 / 3
    wsd_boost: Annotated[Literal["full", "paper"], "multipliers under wsd; full: kept until the decay; paper: kept for half of the time before the decay, then falling to 1"] = "full"
    decay_lr: Annotated[bool, "learning rate schedule; False: constant learning rate, no warmup"] = True
    warmup_iters: Annotated[int, "steps of linear warmup; may exceed max_iters", Range(0)] = 2000
    warmup_scaled: Annotated[bool, "warmup of each block lasts lr_mult times as long, so that all rates rise with one slope"] = False
    lr_decay_iters: Annotated[int, "step at which the learning rate reaches its floor", Range(0)] = 600000
    min_lr: Annotated[float, "floor of the learning rate, one for all blocks (the paper's rule)", Range(0)] = 6e-5
    min_lr_ratio: Annotated[float | None, "floor as a fraction of learning_rate; replaces min_lr if given", Range(0, 1)] = None
    min_lr_scaled: Annotated[bool, "floor of each block is min_lr times its lr_mult"] = False

    # output
    out_dir: Annotated[str, "folder of checkpoints, config.json and metrics.jsonl", PATH] = "out"
    init_from: Annotated[str, "source of the weights: scratch; resume (error without a checkpoint); auto (resume if there is a checkpoint); gpt2, gpt2-medium, gpt2-large, gpt2-xl, hf:DIR_OR_ID", PATH] = "scratch"
    eval_interval: Annotated[int, "steps between evaluations; 0: only the first and the last step", Range(0)] = 2000
    eval_iters: Annotated[int, "batches per evaluation, which covers eval_iters * batch_size fixed sequences", Range(1)] = 200
    test_loss: Annotated[bool, "hold-out of the second half of the validation split: test/loss on it at the last step, val/loss on the first half"] = False
    full_eval: Annotated[bool, "last evaluation over the whole validation text, with test_loss over the whole of each half, instead of eval_iters batches"] = False
    eval_only: Annotated[bool, "evaluation only: print the loss and exit; out_dir is left unchanged"] = False
    log_interval: Annotated[int, "steps between logged rows", Range(0)] = 1
    always_save_checkpoint: Annotated[bool, "checkpoint after every evaluation; False: only if the loss improved, and the best is kept as well as the newest"] = True
    keep_checkpoints: Annotated[int, "number of newest checkpoints kept, at least 2; -1: all, including one at step 0", Range(2, also=-1)] = 2
    checkpoint_format: Annotated[Literal["full", "sharded"], "form of new checkpoints; full: one file, gathered by rank 0; sharded: a folder into which each process writes its share; a run resumes from either"] = "full"
    wandb_log: Annotated[bool, "logging to Weights & Biases as well"] = False
    wandb_project: Annotated[str, "project in Weights & Biases"] = "owt"
    wandb_run_name: Annotated[str, "run name in Weights & Biases"] = "gpt2"

    # curvature while training
    sharpness_interval: Annotated[int, "steps between measurements of each block's Fisher sharpness; 0: none", Range(0)] = 0
    curvature_interval: Annotated[int, "steps between measurements of the largest preconditioned eigenvalue; 0: none", Range(0)] = 0
    curvature_hvps: Annotated[int, "Hessian-vector products per measurement of the eigenvalue", Range(1)] = 5
    curvature_method: Annotated[Literal["krylov", "power"], "method; krylov: largest eigenvalue; power: power iteration, which finds the one of largest magnitude"] = "krylov"
    curvature_exclude: Annotated[list[Literal[BLOCKS]], "blocks left out of the eigenvalue: --curvature_exclude=Emb,Head"] = field(default_factory=list)
    curvature_batch_size: Annotated[int | None, "sequences per measurement, over all processes (None: an eighth of a step's)", Range(1)] = None

    curvature_micro_batch: Annotated[int | None, "sequences per forward pass of a curvature measurement, per process (None: as many as an estimate says fit on CUDA, batch_size elsewhere)", Range(1)] = None
    curvature_precision: Annotated[Literal["highest", "high"], "precision of a curvature measurement's float32 products; high: TF32 on CUDA, faster and good to three digits"] = "highest"

    # machine
    device: Annotated[str, "cpu, cuda, cuda:1, mps (auto: cuda if there is one, else cpu)"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], "precision of the matrix products (auto: bfloat16 on a CUDA device that has it, else float32)"] = "auto"
    residual_dtype: Annotated[Literal["float32", "bfloat16"], "precision of the residual stream between the blocks; bfloat16, with dtype=bfloat16 only: less memory traffic on CUDA"] = "float32"
    loss_rows: Annotated[int, "positions of a micro-step whose logits are in memory at once: 4096 saves GBs on CUDA (0: all; on a CPU in float32 512)", Range(0)] = 0
    compile: Annotated[bool | Literal["auto"], "torch.compile (auto: on for CUDA, with eager as the fallback; off elsewhere)"] = "auto"
    activation_checkpointing: Annotated[bool, "recomputation of activations in the backward pass: less memory, slower"] = False
    parallel: Annotated[Literal["auto", "ddp", "fsdp"], "several processes; ddp: each holds the whole model; fsdp: each holds a share of weights, gradients and optimizer state (auto: ddp)"] = "auto"
    backend: Annotated[Literal["auto", "nccl", "gloo"], "torch.distributed backend (auto: nccl on CUDA, else gloo)"] = "auto"
    seed: Annotated[int, "random seed", Range(0)] = 1337
    data_seed: Annotated[int | None, "seed of the order of the training text, apart from weights and dropout (None: seed)", Range(0)] = None
    nan_policy: Annotated[Literal["stop", "skip"], "what to do when loss or gradient norm is NaN or inf: stop, or skip the step (10 in a row stop the run)"] = "stop"
    deterministic: Annotated[bool, "bitwise reproducibility on CUDA too, at a cost in speed; on a CPU it always holds"] = False
    profile: Annotated[bool, "torch.profiler trace of a few steps, written into out_dir"] = False
    # fmt: on

    def __post_init__(self):
        super().__post_init__()
        trained = is_hugging_face(self.init_from)
        if not trained and self.init_from not in INIT_FROM:
            self.check("init_from", False, " or ".join(INIT_FROM) + did_you_mean(close(self.init_from, INIT_FROM)))
        self.check("arch_warmup", not (self.arch_warmup and trained), "False with pretrained weights")
        clash = self.qk_clip and self.qk_norm
        self.check("qk_clip", not clash, "0 with qk_norm=True, which undoes any scaling of Q and K")
        clash = self.block_beta2 and self.optimizer == "sgd"
        self.check("block_beta2", not clash, "none with optimizer=sgd, which has no second moment")
        for key, preset in (("lr_mult", PerBlock(LR_MULT)), ("wd_mult", PerBlock.fromkeys(BLOCKS, 1.0))):
            if getattr(self, key) != "auto" and getattr(self, key).keys() != preset.keys():  # names only some blocks
                setattr(self, key, preset | getattr(self, key))
        clash = self.lr_rule != "paper" and self.lr_mult == "auto"
        self.check("lr_rule", not clash, "paper with lr_mult=auto, which measures the multipliers")
        if self.parallel == "fsdp":
            refused = {
                "optimizer": self.optimizer == "adam_mini",
                "dtype": self.dtype == "float16",
                "arch_warmup": self.arch_warmup,
                "lr_mult": self.lr_mult == "auto",
                "curvature_interval": self.curvature_interval > 0,
                "sharpness_interval": self.sharpness_interval > 0,
            }
            for key in (key for key, clash in refused.items() if clash):
                problem = "impossible with parallel=fsdp, under which no process has a whole matrix"
                raise UserError(f"{key}={getattr(self, key)}: {problem}; expected parallel=ddp")
        low = self.dtype in ("auto", "bfloat16")
        self.check("residual_dtype", low or self.residual_dtype == "float32", f"float32 with dtype={self.dtype}")
        mixture_shares(self.dataset)
        self.check("out_dir", self.out_dir != "", "a folder's name")

    @property
    def tokens_per_step(self):
        """Tokens of an optimizer step, over all processes."""
        return self.gradient_accumulation_steps * self.batch_size * self.block_size

    def resolved(self):
        """This config with every value that follows from another one filled in; checks the model's shape.

        Raises UserError for a width, or a number of heads, that does not divide.
        """
        llama = self.model_type == "llama"
        auto = self.blockwise and self.lr_mult == "auto"
        by_optimizer = {**BY_OPTIMIZER["adamw"], **BY_OPTIMIZER.get(self.optimizer, {})}
        config = replace(
            self,
            **{key: value for key, value in by_optimizer.items() if getattr(self, key) is None},
            n_kv_head=self.n_kv_head or self.n_head,
            n_inner=self.n_inner or 4 * self.n_embd,
            norm_eps=self.norm_eps or (1e-6 if llama else 1e-5),
            tie_weights=not llama if self.tie_weights is None else self.tie_weights,
            auto_mult_step=(self.auto_mult_step or max(1, self.max_iters // 50)) if auto else None,
            min_lr=self.min_lr if self.min_lr_ratio is None else self.min_lr_ratio * self.learning_rate,
            curvature_batch_size=self.curvature_batch_size or max(1, self.tokens_per_step // self.block_size // 8),
        )
        config = config.with_rule()
        width, heads = config.n_embd, config.n_head
        if auto and not self.eval_only:
            config.check("auto_mult_step", config.auto_mult_step < self.max_iters, f"below max_iters={self.max_iters}")
        config.check("n_embd", width % heads == 0, f"a multiple of n_head={heads}")
        config.check("n_head", heads % config.n_kv_head == 0, f"a multiple of n_kv_head={config.n_kv_head}")
        rotates = not llama or width // heads % 2 == 0
        config.check("n_embd", rotates, f"an even multiple of n_head={heads}, for rotary positions")
        if config.curvature_interval > 0:
            reason = f"0 with optimizer={self.optimizer}, which has no second moment to precondition with"
            config.check("curvature_interval", self.optimizer not in ("lion", "muon"), reason)
            base = config.learning_rate * (1 if auto else config.lr_mult["Norm"])
            reason = "0 if learning_rate * lr_mult.Norm is 0, since the eigenvalue is stated relative to that rate"
            config.check("curvature_interval", base > 0, reason)
            blocks = [block for block in BLOCKS if block != "Head" or not config.tie_weights]
            measured = set(blocks) - set(self.curvature_exclude)
            config.check("curvature_exclude", measured, f"to leave one of {', '.join(blocks)}")
        return config

    def with_rule(self):
        """This config, otherwise resolved, with what lr_rule gives; unchanged where the rule needs a vocabulary that is unknown yet."""
        fixed = {key: given_only(getattr(self, key)) for key in RULED}
        if not self.blockwise or self.lr_mult == "auto":
            lr_mult = dict.fromkeys(BLOCKS, 1.0) if not self.blockwise else "auto"
            return replace(self, lr_mult=lr_mult, wd_mult=dict(self.wd_mult))
        if self.lr_rule in BY_VOCABULARY and self.vocab_size is None:
            return self
        rule = self.shape_rates()
        return replace(self, **{key: {**getattr(rule, key), **fixed[key]} for key in RULED})

    def shape_rates(self):
        """What lr_rule gives for the shape of this config, otherwise resolved."""
        second_moments = self.optimizer in ("adamw", "adam_mini", "muon")
        return RULES[self.lr_rule](Shape(
            width=self.n_embd, depth=self.n_layer, heads=self.n_head, vocabulary=self.vocab_size,
            tokens_per_step=self.tokens_per_step, tied=self.tie_weights, model_type=self.model_type,
            init_std=self.init_std, block_init_std=self.block_init_std,
            beta2=self.beta2 if second_moments else None, block_beta2=self.block_beta2,
        ))  # fmt: skip

    def resolved_without_data(self):
        """What `resolved` gives. Raises UserError where a rule needs the vocabulary, which the data would tell."""
        config = self.resolved()
        expected = f"a number with lr_rule={self.lr_rule}, since no data is read here; --dry_run reads it"
        config.check("vocab_size", not isinstance(config.lr_mult, PerBlock), expected)
        return config


def is_hugging_face(init_from):
    """Whether init_from names weights in Hugging Face's format, of a folder or of the hub."""
    return init_from in PRETRAINED[:-1] or (init_from.startswith("hf:") and init_from != "hf:")


def mixture_shares(dataset):
    """{name: share} of a mixture "a:0.7,b:0.3", its shares divided by their sum; {name: 1.0} of a single data set.

    Raises UserError for anything else.
    """
    parts = [part.strip().rpartition(":") for part in dataset.split(",")]
    if len(parts) == 1 and ":" not in dataset:
        parts = [(dataset, ":", "1")]
    shares = {}
    for name, _, share in parts:
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if name in ("", ".", "..") or name in shares or not 0 <= value < math.inf:
            raise UserError(f"dataset={dataset}: expected {MIXTURE}")
        shares[name] = value
    total = sum(shares.values())
    if not 0 < total < math.inf:
        raise UserError(f"dataset={dataset}: expected {MIXTURE}")
    return {name: share / total for name, share in shares.items()}
