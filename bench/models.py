"""The split of every causal language model class of transformers, by its default config, on the meta device.

python bench/models.py                         # how many split, as they are or by split_qkv; a minute or two
python bench/models.py --out=docs/models.md    # and, in the page, the parameters of every class
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
from blockwise.blocks import BLOCKS, blocks_of
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
HEADING = "## The classes\n"  # of the page: everything behind it is written here


@dataclass
class ModelsConfig(Keys):
    """The keys of models.py."""

    words = "classes"
    classes: Annotated[list[str], "causal language model classes of transformers, or all"] = field(
        default_factory=lambda: ["all"]
    )
    out: Annotated[str | None, "page whose section on the classes is written again", PATH] = None


def causal_classes():
    """{name of a class: its config's model_type}"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    types = {}
    for model_type, name in NAMES.items():
        types.setdefault(name if isinstance(name, str) else name[0], model_type)
    return dict(sorted(types.items()))


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


def summary(answers):
    statuses = [status for status, _ in answers.values()]
    as_it_is, by_split, refused, not_built = map(statuses.count, ("split", "split_qkv", "refused", "not built"))
    return (
        f"{as_it_is} of {len(answers) - not_built} classes split as they are, {by_split} by split_qkv(model); "
        f"{refused} are refused; {not_built} could not be built"
    )


def millions(number):
    return "" if number is None else f"{number / 1e6:,.3g}" if number < 1e8 else f"{number / 1e6:,.0f}"


def section(answers, version):
    """What docs/models.md says of the classes."""
    yield f"\ntransformers {version}, default configs, millions of parameters. {summary(answers)} (\\* in the table).\n"
    yield f"| class | {' | '.join(BLOCKS)} |\n|---|{'---:|' * len(BLOCKS)}"
    for name, (status, answer) in answers.items():
        if status.startswith("split"):
            mark = " \\*" if status == "split_qkv" else ""
            yield f"| {name}{mark} | {' | '.join(millions(answer.get(b)) for b in BLOCKS)} |"
    for status, heading in (("refused", "Refused"), ("not built", "Not built from the default config")):
        rows = [f"| {name} | {answer} |" for name, (s, answer) in answers.items() if s == status]
        if rows:
            yield "\n".join([f"\n## {heading}\n\n| class | message |\n|---|---|", *rows])


def main(argv):
    config, _, _ = configure(ModelsConfig, argv, __doc__)
    import transformers

    warnings.filterwarnings("ignore")
    types, answers = causal_classes(), {}
    every = config.classes == ["all"]
    for name in types if every else config.classes:
        if name not in types:
            raise UserError(f"{name}: expected a causal language model class of transformers")
        answers[name] = status, answer = split(name, types[name])
        if not every or not status.startswith("split"):
            print(f"{name}: {status}: {answer}")
    print(summary(answers))
    if config.out:
        before, heading, _ = Path(config.out).read_text().partition(HEADING)
        Path(config.out).write_text(before + heading + "\n".join(section(answers, transformers.__version__)) + "\n")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
