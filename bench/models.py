"""The split of every causal language model class of transformers, by its default config, on the meta device.

python bench/models.py                         # how many split, as they are or by split_qkv; a minute or two
python bench/models.py --out=docs/models.md    # and the page with the rules and the parameters of every class
python bench/models.py LlamaForCausalLM        # these classes alone
"""

import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import harness  # noqa: F401

from blockwise import UserError, exit_on_user_error
from blockwise.blocks import BLOCKS, KINDS, blocks_of
from blockwise.keys import PATH, Keys
from blockwise.split_qkv import fused_projections, split_qkv
from configurator import configure

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Config values of the classes whose defaults make no model
OPTIONS = {
    "dots1": dict(n_routed_experts=8, n_shared_experts=1),
    "hunyuan_v1_dense": dict(head_dim=128),
    "hunyuan_v1_moe": dict(head_dim=128),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 16),
    "ministral": dict(head_dim=128),
    "nemotron": dict(num_key_value_heads=8),
    "reformer": dict(is_decoder=True),
}


@dataclass
class ModelsConfig(Keys):
    """The keys of models.py."""

    words = "classes"
    classes: Annotated[list[str], "causal language model classes of transformers, or all"] = field(
        default_factory=lambda: ["all"]
    )
    out: Annotated[str | None, "page with the rules and the parameters of every class", PATH] = None


def causal_classes():
    """{name of a class: its config's model_type}"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    found = {}
    for model_type, name in NAMES.items():
        found.setdefault(name if isinstance(name, str) else name[0], model_type)
    return dict(sorted(found.items()))


def without_weights(name, model_type):
    """A model of the class on the meta device. Raises what transformers raises where the config makes none."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = getattr(transformers, name)
    config = CONFIG_MAPPING[model_type](**OPTIONS.get(model_type, {}))
    if cls.config_class and not isinstance(config, cls.config_class):
        config = cls.config_class()
    with torch.device("meta"):
        return cls(config)


def split(name, model_type):
    """(status, answer) of a class: ("split" or "split_qkv", {block: parameters}), ("refused" or "not built", why)."""
    try:
        model = without_weights(name, model_type)
    except Exception as error:  # anything: another package is missing, the defaults contradict each other
        return "not built", " ".join(f"{type(error).__name__}: {error}".split())[:120]
    status = "split"
    try:
        if list(fused_projections(model)):
            status, model = "split_qkv", split_qkv(model)
        return status, {b: sum(p.numel() for _, p in members) for b, members in blocks_of(model).items()}
    except (KeyError, ValueError) as error:
        return "refused", error.args[0]


def summary(found):
    statuses = [status for status, _ in found.values()]
    as_it_is, by_split, refused, not_built = map(statuses.count, ("split", "split_qkv", "refused", "not built"))
    return (
        f"{as_it_is} of {len(found) - not_built} classes split as they are, {by_split} by split_qkv(model); "
        f"{refused} are refused; {not_built} could not be built"
    )


def millions(number):
    return "" if number is None else f"{number / 1e6:,.3g}" if number < 1e8 else f"{number / 1e6:,.0f}"


def page(found, version):
    """docs/models.md"""
    lines = [
        "# Which block type a parameter has",
        "", "```sh", "python -m blockwise.blocks MODEL_ID_OR_DIR      # the split of one model, from its config alone",
        "python bench/models.py --out=docs/models.md     # this page", "```", "",
        "## The rules", "",
        "The paper measured embeddings, QK, VO, FFN and norms. A parameter that is one of these by its role has that",
        "type; what the paper did not measure is `Other`, at the base rate. The names behind each row are `KINDS` in",
        "[blockwise/blocks.py](../blockwise/blocks.py).", "",
        "| parameter | block | why |", "|---|---|---|",
        *(f"| {kind} | {block} | {why} |" for kind, block, why, _, _ in KINDS),
        "| Q, K and V in one matrix | QK and VO | by `split_qkv(model)`; without it refused |",
        "| a `k_proj` without a `v_proj` beside it | Other | K and V are one matrix (Gemma 4's `attention_k_eq_v`) |",
        "| a `q_proj` twice as tall as `o_proj` is wide | Other | it holds Q and a gate (Qwen3-Next, Qwen3.5) |",
        "| a bias | as its matrix | |", "",
        "## The classes", "",
        f"transformers {version}, default configs, millions of parameters. {summary(found)} (\\* in the table).", "",
        f"| class | {' | '.join(BLOCKS)} |", f"|---|{'---:|' * len(BLOCKS)}",
    ]  # fmt: skip
    marks = {"split": "", "split_qkv": " \\*"}
    rows = {name + marks[status]: answer for name, (status, answer) in found.items() if status in marks}
    lines += [f"| {name} | {' | '.join(millions(row.get(b)) for b in BLOCKS)} |" for name, row in rows.items()]
    for status, heading in (("refused", "Refused"), ("not built", "Not built from the default config")):
        if all(s != status for s, _ in found.values()):
            continue
        lines += ["", f"## {heading}", "", "| class | message |", "|---|---|"]
        lines += [f"| {name} | {answer} |" for name, (s, answer) in found.items() if s == status]
    return "\n".join(lines) + "\n"


def main(argv):
    config, _, _ = configure(ModelsConfig, argv, __doc__)
    import transformers

    warnings.filterwarnings("ignore")
    classes = causal_classes()
    names = list(classes) if config.classes == ["all"] else config.classes
    if unknown := [name for name in names if name not in classes]:
        raise UserError(f"{unknown[0]}: expected a causal language model class of transformers")
    found = {}
    for name in names:
        found[name] = status, answer = split(name, classes[name])
        if status not in ("split", "split_qkv") or len(names) < len(classes):
            print(f"{name}: {status}: {answer}")
    print(summary(found))
    if config.out:
        Path(config.out).write_text(page(found, transformers.__version__))


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
