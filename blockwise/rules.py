"""Learning-rate rules: from a model's shape to the rate, decay, beta2 and initial scale of every block type.

    from blockwise.blocks import param_groups
    from blockwise.rules import Shape, mup
    rule = mup(Shape(width=768, depth=12, heads=12, vocabulary=50304, tokens_per_step=2**19))
    groups = param_groups(model, lr=1e-3, lr_mult=rule.lr_mult, weight_decay=0.1, wd_mult=rule.wd_mult)

Rates are multiples of one base rate, `learning_rate`. All rules but `paper` and `tables` meet at the anchor: the LLaMA
of width 128, 4 layers, heads of 32 and 4,096 token ids, trained on 1,024 tokens a step with AdamW (0.9, 0.95), where
the base is the rate of VO and FFN, and 1e-3 was good. docs/methods.md has the table, and how sure each rule is. Below,
m = width / 128, l = depth / 4, h = (32 / head width)^(1/4), s_X is the initial standard deviation of block X, V the
vocabulary, B the tokens of a step. No rule depends on the number of steps: that would scale all blocks alike.

Unless a rule says otherwise, a tied matrix obeys the lower rate of Emb and Head, and `wd_mult` is 1 / rate for
matrices, so that all lose the same share of their weights a step, and 0 for the others: decay hurts rare tokens first
(arXiv 2410.11985).
"""

from dataclasses import dataclass, field
from typing import Any

from blockwise import UserError
from blockwise.blocks import LR_MULT

WIDTH, DEPTH, HEAD_WIDTH, BETA2 = 128, 4, 32, 0.95  # of the anchor


@dataclass(frozen=True)
class Shape:
    """What the rules read of a run.

    tied: whether the output layer is the embedding's matrix. model_type: "llama" for an FFN of three matrices, "gpt2"
    for one of two. init_std, block_init_std, beta2, block_beta2: as the keys of these names; beta2 is None for an
    optimizer without second moments.
    """

    width: int
    depth: int
    heads: int
    vocabulary: int
    tokens_per_step: int
    tied: bool = False
    model_type: str = "llama"
    init_std: float = 0.02
    block_init_std: dict[str, float] = field(default_factory=dict)
    beta2: float | None = BETA2
    block_beta2: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any, tokens_per_step: int, **more: Any) -> "Shape":
        """The shape of a Hugging Face model, or of the language model in one, by its config. more: further fields."""
        tied = getattr(config, "tie_word_embeddings", True)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        width, depth, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        return cls(width, depth, heads, config.vocab_size, tokens_per_step, tied, **more)

    def std(self, block: str) -> float:
        return self.block_init_std.get(block, self.init_std)


@dataclass(frozen=True)
class Rates:
    """What a rule gives: values of the keys of these names; blocks that a table lacks have the default."""

    lr_mult: dict[str, float]
    wd_mult: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LR_MULT, 1.0))
    block_beta2: dict[str, float] = field(default_factory=dict)
    block_init_std: dict[str, float] = field(default_factory=dict)


def rates(
    shape: Shape, Emb: float, Head: float, QK: float, VO: float, FFN: float, Norm: float, **more: dict[str, float]
) -> Rates:
    """Rates by what the rules share; see the module."""
    Emb = min(Emb, Head) if shape.tied else Emb
    lr_mult = {"Emb": Emb, "QK": QK, "VO": VO, "FFN": FFN, "Norm": Norm, "Head": Head}
    wd_mult = {block: 1 / rate if block in ("QK", "VO", "FFN") else 0.0 for block, rate in lr_mult.items()}
    return Rates(lr_mult, wd_mult, **more)


def paper(shape: Shape) -> Rates:
    """Emb 10, QK 8, FFN 6, VO 4, Norm 1, and Head 10 where it is untied, whatever the shape; decay 1 for all.

    Source: arXiv 2502.19002, tuned on a LLaMA of 0.25 billion parameters; Head is this project's. The base is the rate
    of Norm and the lowest, so it is several times lower than that of the other rules.
    """
    return Rates(dict(LR_MULT))


def fitted(shape: Shape) -> Rates:
    """Emb 12, Head 12, QK 4, VO 1, FFN 1, Norm 1, whatever the shape; decay 1 for all, as it was run.

    Source: a search over ratios at the anchor, in 500 steps, untied (docs/studies).
    """
    return Rates({"Emb": 12.0, "QK": 4.0, "VO": 1.0, "FFN": 1.0, "Norm": 1.0, "Head": 12.0})


def tables(shape: Shape) -> Rates:
    """Emb and Head 4, every other block 1, whatever the shape; decay 1 for all.

    Source: the embedding's rate is what muP gains under Adam, and a low one makes training unstable (arXiv 2605.21486);
    here in runs of 0.34M parameters (docs/studies). By muP the multiple would grow with the width. The base is one
    rate for all, as AdamW's.
    """
    return Rates(dict.fromkeys(LR_MULT, 1.0) | {"Emb": 4.0, "Head": 4.0})


def mup(shape: Shape, Emb: float = 12.0) -> Rates:
    """Emb 12, Norm 1, Head 12/m, VO and FFN 1/m, QK h/m; init: s of matrices m^(-1/2), QK's also h, s_Head 1/m times.

    Source: exponents of muP for Adam (Tensor Programs V, arXiv 2203.03466, table 3); constants from `fitted` but for
    QK. muP divides attention logits by the head width instead of its root; h on Q and K, in rate and init, is the same
    training under Adam. It says nothing of depth, batch or the ratio at one size.
    """
    m, h = shape.width / WIDTH, (HEAD_WIDTH * shape.heads / shape.width) ** 0.25
    std = shape.init_std * m**-0.5
    init = {"QK": std * h, "VO": std, "FFN": std, "Head": shape.init_std / m}
    return rates(shape, Emb=Emb, Head=12 / m, QK=h / m, VO=1 / m, FFN=1 / m, Norm=1.0, block_init_std=init)


def completep(shape: Shape) -> Rates:
    """muP, and branches that shrink as 1/l: VO l^(-1/2), FFN l^(-1/n) times, in init l^(-1/4) and l^(-1/(2n)).

    Source: CompleteP (arXiv 2505.01618) with alpha = 1, which multiplies the output of each residual branch by 1/l.
    Left out are that change of the forward pass and eps / (m l). A branch of n matrices (V and O: 2; up and down: 2;
    with llama's gate 3) is instead 1/l as large if each of them is l^(-1/n) as large and learns l^(-1/n) as fast: exact
    for V and O, approximate for FFN, whose activation is linear (llama's: bilinear) for small inputs only. Init takes
    half of the exponent, because the output projections have 1/sqrt(2 n_layer) already, all of it on one matrix of n.
    """
    shallow, m = mup(shape), shape.width / WIDTH
    deeper, n = shape.depth / DEPTH, 3 if shape.model_type == "llama" else 2
    init = shallow.block_init_std
    init |= {"VO": init["VO"] * deeper**-0.25, "FFN": init["FFN"] * deeper ** (-0.5 / n)}
    lr_mult = shallow.lr_mult | {"VO": deeper**-0.5 / m, "FFN": deeper ** (-1 / n) / m}
    return rates(shape, **lr_mult, block_init_std=init)


def large_vocab(shape: Shape) -> Rates:
    """muP with sqrt(width)/m for Emb where V >= 8 width; muP itself where V is smaller.

    Source: arXiv 2506.15025: with a vocabulary that is large beside the width, the embedding's rate over that of the
    matrices should go as sqrt(width), not as width; taken with the constant 1. The dynamics go from one to the other as
    V grows: that the switch is at 8 width is this project's choice.
    """
    if shape.vocabulary < 8 * shape.width:
        return mup(shape)
    return mup(shape, Emb=shape.width**0.5 / (shape.width / WIDTH))


def nanochat(shape: Shape) -> Rates:
    """Emb 14, Head 4, QK, VO and FFN 1, each times m^(-1/2); Norm 15; init: s_Emb 0.02, s_Head 0.

    Source: the ratios of nanochat and modded-nanogpt, whose Muon updates shrink as width^(-1/2) too, moved to the
    anchor through rate over init std; for AdamW in all blocks: an analogy. Left out: their factors for batch and
    horizon, and the beta2 of their tables, which belong to half a million tokens a step.
    """
    root = (shape.width / WIDTH) ** -0.5
    return rates(
        shape, Emb=14 * root, Head=4 * root, QK=root, VO=root, FFN=root, Norm=15.0,
        block_init_std={"Emb": 0.02, "Head": 0.0},
    )  # fmt: skip


def relative(shape: Shape) -> Rates:
    """Emb 600 s_Emb g, Head 1536/width g, QK 50 s_QK, VO 50 s_VO, FFN 50 s_FFN, Norm 1; beta2 of Emb and Head by V/B.

    At a base rate of 1e-3 a step moves an embedding by 60% of its initial scale, a matrix by 5%, and the head a logit
    by about 1.5. o_proj and down_proj count by the s of their block. beta2 has a half-life of 10 V/B steps where that
    is more than the run's own, so that a rare row's second moment lives until the row comes back. g, the displacement
    of 0.95 over that of beta2, keeps what one isolated gradient moves a row by; with block_beta2 given, g follows that:
    `--block_beta2.Emb=0.95 --block_beta2.Head=0.95` is the rule without it.

    Source: this project, a hypothesis. Raises UserError for an initial standard deviation of 0.
    """
    for block in ("Emb", "QK", "VO", "FFN"):
        if shape.std(block) <= 0:
            raise UserError(f"lr_rule=relative: the init std of {block} is 0, and rates follow it; expected above 0")
    beta2 = table_beta2(shape)
    g = {block: displacement(BETA2) / displacement(max(beta2.get(block, BETA2), BETA2)) for block in ("Emb", "Head")}
    QK, VO, FFN = (50 * shape.std(block) for block in ("QK", "VO", "FFN"))
    Emb, Head = 600 * shape.std("Emb") * g["Emb"], 12 * WIDTH / shape.width * g["Head"]
    return rates(shape, Emb=Emb, Head=Head, QK=QK, VO=VO, FFN=FFN, Norm=1.0, block_beta2=beta2)


def table_beta2(shape: Shape) -> dict[str, float]:
    """{block: beta2} of Emb and Head: as given, else of a half-life of 10 V/B steps if that is longer than beta2's."""
    if shape.beta2 is None:
        return {}
    beta2 = max(0.5 ** (shape.tokens_per_step / (10 * shape.vocabulary)), shape.beta2)
    return {"Emb": beta2, "Head": beta2} | shape.block_beta2 if beta2 > shape.beta2 else shape.block_beta2


def displacement(beta2: float, beta1: float = 0.9) -> float:
    """G: how far Adam moves a coordinate by one isolated gradient, in units of the rate; 5.84 for (0.9, 0.95).

    (1 - beta1) / sqrt(1 - beta2) / (1 - beta1 / sqrt(beta2)), for eps -> 0 and beta2 > beta1^2.
    """
    return (1 - beta1) / (1 - beta2) ** 0.5 / (1 - beta1 / beta2**0.5)


def decay_for_budget(learning_rate: float, steps: int, tokens: float, parameters: float) -> float:
    """The weight decay with which rate x decay x steps is (tokens / parameters)^0.527 / 1.084, at the peak rate.

    Source: Power Lines (arXiv 2505.13738), of 0.1 to 3 billion parameters. The rules' `wd_mult` keep rate x decay the
    same for all matrices, so `weight_decay` is this, with the base rate.
    """
    return (tokens / parameters) ** 0.527 / (1.084 * learning_rate * steps)


RULES = {rule.__name__: rule for rule in (paper, fitted, tables, mup, completep, large_vocab, nanochat, relative)}
BY_VOCABULARY = ("large_vocab", "relative")  # need to know the number of token ids
