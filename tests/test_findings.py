"""What the pages say of the studies is what the studies' study.json says."""

import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import findings

from blockwise.study.summary import losses_of
from blockwise.study.verdict import judge

STUDIES = sorted(path.parent.name for path in ROOT.glob("docs/studies/*/study.json"))
# -0.077 (-0.118 to -0.036): undecided
RESULT = re.compile(r"([-+]\d\.\d{3}) \(([-+]\d\.\d{3}) to ([-+]\d\.\d{3})\)(?:: (lower|higher|undecided|equivalent))?")


@pytest.fixture(scope="module")
def tests():
    """Those of the studies, and between the arms of study_batch, whose page compares Muon's with each other."""
    every = [one.get("test") for name in STUDIES for arms in places(name) for one in arms.values()]
    (arms,) = places("study_batch")
    every += judge({arm: losses_of(one) for arm, one in arms.items()}, "muon, one rate", 0.01).values()
    return [test for test in every if test and test["low"] is not None]


def places(name):
    return findings.study(name)["places"].values()


@pytest.mark.parametrize("page", findings.PAGES, ids=lambda page: page.parent.name)
def test_the_table_of_findings_is_current(page):
    assert findings.with_table(page) == page.read_text(), "run: python docs/findings.py"
    assert findings.table()[2] in page.read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/studies/README.md", "docs/studies/older.md", "docs/methods.md"])
def test_every_gap_with_an_interval_is_a_studys_and_its_word_too(name, tests):
    for *numbers, word in RESULT.findall((ROOT / name).read_text()):
        hits = [
            test
            for test in tests
            if all(abs(test[key] - float(n)) < 6e-4 for key, n in zip(("gap", "low", "high"), numbers, strict=True))
        ]
        assert hits, f"{name}: no study has {numbers}"
        assert not word or word in {test["word"].split()[0] for test in hits}, f"{name}: {numbers}: {word}"
