"""The split of every causal language model class of transformers, by its default config, on the meta device.

python bench/models.py                         # the share that splits without an argument; a minute or two
python bench/models.py --out=docs/models.md    # and the page with the rules and the parameters of every class
python bench/models.py LlamaForCausalLM ...    # these classes alone
"""

import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from blockwise.blocks import BLOCKS, KINDS, blocks_of

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
    """(status, answer) of a class: ("split", {block: parameters}), ("refused", why) or ("not built", why)."""
    try:
        model = without_weights(name, model_type)
    except Exception as error:  # anything: another package is missing, the defaults contradict each other
        return "not built", " ".join(f"{type(error).__name__}: {error}".split())[:120]
    try:
        return "split", {b: sum(p.numel() for _, p in members) for b, members in blocks_of(model).items()}
    except (KeyError, ValueError) as error:
        return "refused", error.args[0]


def summary(found):
    count = {status: sum(s == status for s, _ in found.values()) for status in ("split", "refused", "not built")}
    built = count["split"] + count["refused"]
    return (
        f"{count['split']} of {built} classes split without an argument ({count['split'] / max(built, 1):.1%}); "
        f"{count['refused']} are refused; {count['not built']} could not be built"
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
        "| Q, K and V in one matrix | refused | half QK, half VO: split it, or pass `fused_qkv=` |",
        "| a `k_proj` without a `v_proj` beside it | Other | K and V are one matrix (Gemma 4's `attention_k_eq_v`) |",
        "| a `q_proj` twice as tall as `o_proj` is wide | Other | it holds Q and a gate (Qwen3-Next, Qwen3.5) |",
        "| a bias | as its matrix | |", "",
        "## The classes", "",
        f"transformers {version}, default configs, millions of parameters. {summary(found)}.", "",
        f"| class | {' | '.join(BLOCKS)} |", f"|---|{'---:|' * len(BLOCKS)}",
    ]  # fmt: skip
    rows = {name: answer for name, (status, answer) in found.items() if status == "split"}
    lines += [f"| {name} | {' | '.join(millions(row.get(b)) for b in BLOCKS)} |" for name, row in rows.items()]
    for status, heading in (("refused", "Refused"), ("not built", "Not built from the default config")):
        lines += ["", f"## {heading}", "", "| class | message |", "|---|---|"]
        lines += [f"| {name} | {answer} |" for name, (s, answer) in found.items() if s == status]
    return "\n".join(lines) + "\n"


def main(arguments):
    import transformers

    warnings.filterwarnings("ignore")
    outs = [word.removeprefix("--out=") for word in arguments if word.startswith("--out=")]
    classes = causal_classes()
    wanted = [word for word in arguments if not word.startswith("--")] or list(classes)
    unknown = [w for w in arguments if w.startswith("--") and not w.startswith("--out=")]
    unknown += [word for word in wanted if word not in classes]
    if unknown:
        sys.exit(f"error: {unknown[0]}: expected a causal class of transformers or --out=FILE.md")
    found = {}
    for name in wanted:
        found[name] = status, answer = split(name, classes[name])
        if status != "split" or len(wanted) < len(classes):
            print(f"{name}: {status}: {answer}")
    print(summary(found))
    if outs:
        Path(outs[0]).write_text(page(found, transformers.__version__))


if __name__ == "__main__":
    main(sys.argv[1:])
