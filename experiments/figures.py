"""What the experiments share: the way to the project, line styles, tables, the study that they read."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from blockwise.keys import PATH, Keys

PANEL = (4.5, 3.4)  # inches
# Okabe and Ito's colours, which differ in lightness too; the dashes tell lines apart in grey
STYLES = [
    {"color": "black", "linestyle": (0, (5, 2))},
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": (0, (6, 1, 1, 1))},
    {"color": "#009E73", "linestyle": (0, (1, 1))},
]


@dataclass
class StudyFolder(Keys):
    """The one key of an experiment that reads a study."""

    words = "folder"
    folder: Annotated[str, "out_dir of a study", PATH] = ""


def table(head, rows):
    """Print a table, in Markdown."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
