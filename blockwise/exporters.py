"""The split of a model as text that other trainers read: torchtitan, NeMo Automodel, Megatron-LM, or JSON.

    python -m blockwise.blocks MODEL_ID_OR_DIR --as=nemo --rates=out/tune/rates.json
    print(export(model, "megatron"))      # a model of the trainer's own, in a script that has made it

Patterns are made of the model's own names: give it the model that the trainer trains. Formats as of August 2026.
"""

import fnmatch
import json
import re
from collections.abc import Callable

from blockwise.blocks import LR_MULT, check_multipliers, check_number, group_by_block

Split = dict[str, list[str]]  # {block type: names of its parameters}
ADAMW = {"lr": 6e-4, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1}  # lr: of a block at 1x

TORCHTITAN = """\
# param_groups of torchtitan's OptimizersContainer.Config: the first pattern that matches counts, and each must match in
# every pipeline stage. LR is the rate of a block at 1x.
from torchtitan.components.optimizer import ParamGroupConfig

LR, REST = {lr:g}, {{"betas": ({beta1:g}, {beta2:g}), "weight_decay": {weight_decay:g}}}
param_groups = [
{groups}
]"""

NEMO = """\
# NeMo Automodel: the optimizer section of a recipe. lr is the rate of a block at 1x.
optimizer:
  _target_: torch.optim.AdamW
  lr: {lr:.5e}
  betas: [{beta1:g}, {beta2:g}]
  weight_decay: {weight_decay:g}
  param_group_overrides:
{groups}"""

MEGATRON = """\
# Megatron-LM: get_megatron_optimizer(config, model, config_overrides=config_overrides). All blocks decay to the one
# config.min_lr, which is the paper's rule. The rest of config: --lr={lr:g} --weight-decay={weight_decay:g}
# --adam-beta1={beta1:g} --adam-beta2={beta2:g}
from megatron.core.optimizer import get_standard_config_overrides
from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.optimizer_param_scheduler import ParamGroupOverride

config_overrides = get_standard_config_overrides(config)
config_overrides |= {{
{groups}
}}"""


def export(model_or_named_parameters: object, trainer: str, fused_qkv: str | None = None,
           block_of: dict[str, str] | None = None, unknown: str = "error",
           lr_mult: dict[str, float] | None = None, **adamw: float) -> str:  # fmt: skip
    """Text for a trainer of EXPORTERS: every parameter that needs a gradient, with the multiplier of its block.

    lr_mult: as in `param_groups`. adamw: lr (of a block at 1x), beta1, beta2 and weight_decay, in place of ADAMW's.
    Raises ValueError for another trainer or key and for names that its patterns cannot tell apart, and what `blocks_of`
    and `param_groups` raise.
    """
    if trainer not in EXPORTERS:
        raise ValueError(f"--as={trainer}: expected one of {', '.join(EXPORTERS)}")
    check_multipliers("lr_mult", lr_mult)
    for name, value in adamw.items():
        if name not in ADAMW:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(ADAMW)}")
        check_number(name, value)
    table = group_by_block(model_or_named_parameters, fused_qkv, block_of, unknown)
    split = {block: [name for name, _ in members] for block, members in table.items() if block != "frozen"}
    rates = {**LR_MULT, "Other": 1.0, **(lr_mult or {})}
    return EXPORTERS[trainer](split, rates, {**ADAMW, **adamw})


def read_rates(path: str) -> dict:
    """What `export` takes, {"lr_mult": {block: multiplier}, "lr": ..., ...}, of the rates.json that tune.py writes.

    Raises ValueError for a file that is none, and for rates that were found for another optimizer than AdamW.
    """
    try:
        with open(path, encoding="utf-8") as file:
            rates = json.load(file)["rates"]
        lr_mult = dict(rates.get("lr_mult", dict.fromkeys((*LR_MULT, "Other"), 1.0)))
        adamw = {key: rates[key] for key in ("beta1", "beta2", "weight_decay") if key in rates}
        adamw["lr"] = rates["learning_rate"]
        check_multipliers("lr_mult", lr_mult)
        for name, value in adamw.items():
            check_number(name, value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--rates={path}: expected the rates.json of tune.py ({error})") from None
    if (optimizer := rates.get("optimizer", "adamw")) != "adamw":
        raise ValueError(f"--rates={path}: expected rates of adamw, not of {optimizer}")
    return {"lr_mult": lr_mult, **adamw}


def as_json(split: Split, rates: dict[str, float], adamw: dict[str, float]) -> str:
    rows = {
        block: {"lr_mult": rates[block], "lr": adamw["lr"] * rates[block], "parameters": names}
        for block, names in split.items()
    }
    return json.dumps(rows, indent=1)


def as_torchtitan(split: Split, rates: dict[str, float], adamw: dict[str, float]) -> str:
    rows = [
        f'    ParamGroupConfig(pattern=r"{pattern}", optimizer_name="AdamW",\n'
        f'                     optimizer_kwargs={{"lr": {rates[block]:g} * LR, **REST}}),  # {block}'
        for block, pattern in regular_expressions(split).items()
    ]
    return TORCHTITAN.format(groups="\n".join(rows), **adamw)


def as_nemo(split: Split, rates: dict[str, float], adamw: dict[str, float]) -> str:
    rows = [
        f"    - pattern: '{pattern}'  # {block}\n      lr_mult: {rates[block]:g}"
        for block, pattern in regular_expressions(split).items()
    ]
    return NEMO.format(groups="\n".join(rows), **adamw)


def as_megatron(split: Split, rates: dict[str, float], adamw: dict[str, float]) -> str:
    """Globs, each with and without what wrappers put before the name."""
    globs = {
        block: [f"{start}{kind.replace('#', '[0-9]*')}" for kind in kinds for start in ("", "*.")]
        for block, kinds in kinds_of(split).items()
    }
    told_apart(split, lambda block, name: any(fnmatch.fnmatchcase(name, glob) for glob in globs[block]))
    rows = [
        f"    ParamKey(name={json.dumps(names).replace('[', '(', 1)[:-1]},)):\n"
        f"        ParamGroupOverride(max_lr={rates[block]:g} * config.lr),  # {block}"
        for block, names in globs.items()
    ]
    return MEGATRON.format(groups="\n".join(rows), **adamw)


def kinds_of(split: Split) -> Split:
    """Names with # for the numbers of layers and experts, each once."""
    return {block: list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "#", n) for n in ns)) for block, ns in split.items()}


def regular_expressions(split: Split) -> dict[str, str]:
    """One for each block, for `re.search`; wrappers may stand before the name and around a layer."""
    patterns = {
        block: r"(?:^|\.)(?:" + "|".join(re.escape(k).replace(r"\#", r"\d+(?:\._\w+)?") for k in kinds) + ")$"
        for block, kinds in kinds_of(split).items()
    }
    told_apart(split, lambda block, name: bool(re.search(patterns[block], name)))
    return patterns


def told_apart(split: Split, matches: Callable[[str, str], bool]) -> None:
    """Raise ValueError unless every name is matched by its own block alone."""
    for block, names in split.items():
        for name in names:
            if [b for b in split if matches(b, name)] != [block]:
                raise ValueError(f"{name} of {block} is also matched by a pattern of another block")


EXPORTERS = {"json": as_json, "torchtitan": as_torchtitan, "nemo": as_nemo, "megatron": as_megatron}
