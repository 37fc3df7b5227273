"""Write docs/configuration.md: every key of train.py, by section, from blockwise/settings.py.

python docs/configuration.py
"""

import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blockwise.keys import Range, marker
from blockwise.settings import TrainConfig
from configurator import describe

PAGE = ROOT / "docs/configuration.md"
HEAD = """# Every key of train.py

```sh
python train.py --help                              # the same list in the terminal
python train.py config/demo.py --print_config       # what a command resolves to
```

A key is given as `--key=value`, or assigned in a config file, which is Python; order counts, later wins. An entry of a
dict is `--lr_mult.QK=6`. Defaults that read None or auto are filled in from the model, the data, the optimizer or the
machine, and `config.json` in `out_dir` states the result. Keys that nanoGPT has keep its meaning and its default, but
`device`, `dtype`, `compile` and `backend` default to auto.

This page is generated from `blockwise/settings.py` by `python docs/configuration.py`.
"""


def sections():
    """[(title, [key, ...])]: a comment in the class, but for the formatter, opens a section."""
    titled = []
    source = inspect.getsource(TrainConfig)
    for title, key in re.findall(r"^    (?:# (?!fmt:)(.+)|(\w+): Annotated)", source, re.MULTILINE):
        if title:
            titled.append((title, []))
        else:
            titled[-1][1].append(key)
    return titled


def shown(value):
    """A default as it reads in a sentence."""
    if isinstance(value, dict) and not value:
        return "none"
    if isinstance(value, dict):
        if len(set(value.values())) == 1:
            return f"all {shown(next(iter(value.values())))}"
        return ", ".join(f"{entry} {shown(number)}" for entry, number in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def page():
    hints = get_type_hints(TrainConfig, include_extras=True)
    defaults = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(TrainConfig)}
    lines = [HEAD]
    for title, keys in sections():
        lines += [f"## {title.capitalize()}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys:
            kind, meaning, *_ = get_args(hints[key])
            interval = marker(hints[key], Range)
            kind = describe(kind) + (f", {interval}" if interval else "")
            lines.append(f"| `{key}` | {kind} | {shown(defaults[key])} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
