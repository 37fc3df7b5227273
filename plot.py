"""Figures of what runs leave behind and of what configs ask for; needs no torch.

    python plot.py curves DIR [DIR ...] [--baseline=DIR] [--out=FILE.png]
    python plot.py study DIR
    python plot.py sharpness DIR
    python plot.py spectrum DIR
    python plot.py curvature DIR
    python plot.py lr FILE.py [--key=value ...] [--out=FILE.png]
"""

import sys
from pathlib import Path

from blockwise import exit_on_user_error
from blockwise.figures import curvature, curves, learning_rates, sharpness, spectra, study
from blockwise.settings import TrainConfig
from configurator import ArgumentParser, configure


def lr(args):
    """Draw the learning rate of every block against the step, under the config that train.py would make of `args`."""
    about = "The learning rate of every block against the step; --out=FILE.png, else the file's name and _lr.png."
    outs = [arg.removeprefix("--out=") for arg in args if arg.startswith("--out=")]
    args = [arg for arg in args if not arg.startswith("--out=")]
    config = configure(TrainConfig, args, about)[0].resolved_without_data()
    files = [arg for arg in args if not arg.startswith("-")]
    out = outs[-1] if outs else f"{Path(files[-1]).stem if files else 'defaults'}_lr.png"
    learning_rates.draw(config, " ".join(args) or "defaults", Path(out))


def main():
    if sys.argv[1:2] == ["lr"]:  # its arguments are train.py's
        return lr(sys.argv[2:])
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="curves|study|sharpness|spectrum|curvature|lr")
    command = commands.add_parser("curves", help="loss against step, with the terminal gap and the speedup")
    command.add_argument("folders", nargs="+", metavar="DIR", help="out_dir of a run")
    command.add_argument("--baseline", metavar="DIR", help="another run, a baseline whatever its config says")
    command.add_argument("--out", metavar="FILE.png", help="default: curves.png in the first DIR")
    command.set_defaults(function=lambda args: curves.draw(args.folders, args.baseline, args.out))
    command = commands.add_parser("study", help="what compare.py found: loss against learning rate, curves with bands")
    command.add_argument("folder", metavar="DIR", help="out_dir of a study")
    command.set_defaults(function=lambda args: study.draw(args.folder))
    command = commands.add_parser("sharpness", help="what measure.py found of each block's curvature")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote")
    command.set_defaults(function=lambda args: sharpness.draw(args.folder))
    command = commands.add_parser("spectrum", help="eigenvalues of each block, and distances between their spectra")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote")
    command.set_defaults(function=lambda args: spectra.draw(args.folder))
    command = commands.add_parser("curvature", help="largest eigenvalues against the step, and the threshold")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote, or a run that logged them")
    command.set_defaults(function=lambda args: curvature.draw(args.folder))
    commands.add_parser("lr", help="the learning rate of every block under a config")
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
