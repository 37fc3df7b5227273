"""Figures of what runs, studies and measurements leave behind, one file per family. Nothing here loads torch."""

from importlib import import_module
from pathlib import Path

from blockwise import UserError
from blockwise.figures.style import reading, write


def draw(command, folder):
    """Draw what a study or a command of measure.py left in a folder, beside it, by the module of that name."""
    folder = Path(folder)
    with reading(folder, "study.json" if command == "study" else f"{command}_*.json"):
        figures = list(import_module(f"blockwise.figures.{command}").figures(folder))
    if not figures:
        raise UserError(f"{folder} holds nothing that plot.py {command} draws")
    for name, figure in figures:
        write(figure, folder / name)
