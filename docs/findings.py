"""Write the table of findings into README.md and docs/studies/README.md, from the studies' study.json.

python docs/findings.py
"""

import json
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blockwise.figures.budgets import read, speedup
from blockwise.study.verdict import spread

FOLDER = ROOT / "docs/studies"
PAGES = (ROOT / "README.md", FOLDER / "README.md")
SHORT = 9  # rows of README.md: the rest are rules as they come
MARKS = "<!-- findings, by docs/findings.py -->\n", "<!-- end of findings -->\n"
# Training tokens per parameter, and the study; the first is of another shape than the others, the last but one of a
# batch of four times the tokens
BUDGETS = {"0.27, width 128": "study_baseline", "1.25": "study_budget", "5": "study_budget_5"}
BUDGETS |= {"5, in a quarter of the steps": "study_batch", "20": "study_budget_20"}
# The same shape and text on fresh seeds
FRESH = {"study_budget": ["study_tables"], "study_budget_5": ["study_tables_5"]}
FRESH |= {"study_budget_20": ["study_seeds", "study_tables_20"]}
TUNED = ("fitted, tuned", "the paper's multipliers, tuned")
ARMS = {
    "fitted, tuned": "fitted",
    "the same, fresh seeds": "fitted",
    "the paper's multipliers, tuned": "paper",
    "tables at 4x, fresh seeds": "tables 4x",
    "tables at 16x, fresh seeds": "tables 16x",
    "Muon, one rate, tuned": "muon, one rate",
    "Muon, fast tables, tuned": "muon, fast tables",
    "Muon, fast tables, fresh seeds": "muon, fast tables",
    "fitted, as it is": "fitted, as it is",
    "the paper's, tuned at 5": "paper, as at 5",
}
ARMS |= {f"{rule}, as it is": rule for rule in ("large_vocab", "mup", "nanochat", "relative")}


@cache
def study(name):
    return json.loads((FOLDER / name / "study.json").read_text())


def test_of(names, arm):
    """The test of an arm in the only comparison of the first study that has the arm; None where none has."""
    found = (arms[arm]["test"] for name in names for arms in study(name)["places"].values() if arm in arms)
    return next(found, None)


def speedups(arm):
    """{study: (lowest, mean's, highest)} of an arm at study_budget's budgets: times fewer steps, also by seed."""
    studies = {name: read(FOLDER / name) for name in BUDGETS.values() if name.startswith("study_budget")}

    def line(kind, seed):
        """[(tokens, loss)] by budget of one seed, or of the mean."""
        arms = [(one["tokens"], one["arms"][kind]) for one in studies.values() if kind in one["arms"]]
        losses = [(tokens, result["losses"] | {"mean": spread(result["losses"])[0]}) for tokens, result in arms]
        return [(tokens, loss[seed]) for tokens, loss in losses if seed in loss]

    seeds = {seed for one in studies.values() for seed in one["arms"]["adamw"]["losses"]}
    result = {}
    for name, tokens in ((name, one["tokens"]) for name, one in studies.items() if arm in one["arms"]):
        if mean := speedup(line(arm, "mean"), line("adamw", "mean"), tokens):
            by_seed = [speedup(line(arm, seed), line("adamw", seed), tokens) for seed in seeds]
            result[name] = min(filter(None, by_seed)), mean, max(filter(None, by_seed))
    return result


def cell(test, speed):
    if test is None:
        return "not run"
    text = f"{test['word']}: {test['gap']:+.3f} ({test['low']:+.3f} to {test['high']:+.3f}), {test['seeds']} seeds"
    return text + (f", {speed[1]:.2f}x ({speed[0]:.2f} to {speed[2]:.2f})" if speed else "")


def table():
    """The lines of the table: each arm against the tuned AdamW, by budget."""
    lines = [f"| tokens a parameter | {' | '.join(BUDGETS)} |", "|---" * (len(BUDGETS) + 1) + "|"]
    for label, arm in ARMS.items():
        faster = speedups(arm) if label in TUNED else {}
        fresh = label.endswith("fresh seeds")
        tests = {name: test_of(FRESH.get(name, ()) if fresh else [name], arm) for name in BUDGETS.values()}
        lines.append(f"| {label} | {' | '.join(cell(test, faster.get(name)) for name, test in tests.items())} |")
    return lines


def with_table(page):
    """The text of a page with the table between its marks as it is now."""
    start, end = MARKS
    lines = table()[: 2 + SHORT] if page == ROOT / "README.md" else table()
    return re.sub(
        f"{re.escape(start)}.*?{re.escape(end)}",
        f"{start}\n" + "\n".join(lines) + f"\n\n{end}",
        page.read_text(),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_table(page))
