"""Figures of what runs leave behind and of what configs ask for; needs no torch.

python plot.py curves DIR [DIR ...] [--baseline=DIR] [--out=FILE.png]
python plot.py study DIR
python plot.py budgets DIR DIR [DIR ...] [--out=FILE.png]
python plot.py sharpness DIR
python plot.py spectrum DIR
python plot.py curvature DIR
python plot.py frequency DIR
python plot.py lr FILE.py [--key=value ...] [--out=FILE.png]
python plot.py rules [FILE.py] [--key=value ...] [--out=FILE.png]
"""

import sys
from dataclasses import replace
from pathlib import Path

from blockwise import exit_on_user_error
from blockwise.figures import budgets, curvature, curves, frequency, learning_rates, rules, sharpness, spectra, study
from blockwise.settings import TrainConfig
from configurator import ArgumentParser, configure

# Where the rules for rates meet
ANCHOR = TrainConfig(
    model_type="llama", n_layer=4, n_embd=128, n_head=4, vocab_size=4096, block_size=128, batch_size=8,
    gradient_accumulation_steps=1,
)  # fmt: skip


def lr(args):
    """Draw the learning rate of every block against the step, under the config that train.py would make of `args`."""
    about = "The learning rate of every block against the step; --out=FILE.png, else the file's name and _lr.png."
    config, asked, name, out = of_config(args, about, None)
    learning_rates.draw(config.resolved_without_data(), asked, out or Path(f"{name}_lr.png"))


def rate_rules(args):
    """Draw every block's rate against the width by every rule, under the config that train.py would make of `args`."""
    about = "Every block's rate against the width, by every rule; --out=FILE.png, else the file's name and _rules.png."
    config, _, name, out = of_config(args, about, ANCHOR)
    config.check("vocab_size", config.vocab_size, "a number, which rules need")
    rules.draw(replace(config.resolved(), lr_rule="paper"), out or Path(f"{name}_rules.png"))


def of_config(args, about, start):
    """(TrainConfig, the arguments as text, the last file's stem, --out as a path or None) of a figure of a config.

    start: the TrainConfig whose keys change where no file is named (None: the defaults).
    """
    outs = [arg.removeprefix("--out=") for arg in args if arg.startswith("--out=")]
    args = [arg for arg in args if not arg.startswith("--out=")]
    files = [Path(arg).stem for arg in args if not arg.startswith("-")]
    config = configure(TrainConfig, args, about, start=None if files else start)[0]
    asked = " ".join(args) or "defaults"
    return config, asked, files[-1] if files else "defaults", Path(outs[-1]) if outs else None


def main():
    if sys.argv[1:2] in (["lr"], ["rules"]):  # their arguments are train.py's
        return {"lr": lr, "rules": rate_rules}[sys.argv[1]](sys.argv[2:])
    parser = ArgumentParser(description=__doc__)
    names = "curves|study|budgets|sharpness|spectrum|curvature|frequency|lr|rules"
    commands = parser.add_subparsers(required=True, metavar=names)
    command = commands.add_parser("curves", help="loss against step, with the terminal gap and the speedup")
    command.add_argument("folders", nargs="+", metavar="DIR", help="out_dir of a run")
    command.add_argument("--baseline", metavar="DIR", help="another run, a baseline whatever its config says")
    command.add_argument("--out", metavar="FILE.png", help="default: curves.png in the first DIR")
    command.set_defaults(function=lambda args: curves.draw(args.folders, args.baseline, args.out))
    command = commands.add_parser("study", help="what compare.py found: loss against learning rate, curves with bands")
    command.add_argument("folder", metavar="DIR", help="out_dir of a study")
    command.set_defaults(function=lambda args: study.draw(args.folder))
    command = commands.add_parser("budgets", help="loss and lead against the tokens, of studies at several budgets")
    command.add_argument("folders", nargs="+", metavar="DIR", help="out_dir of a study")
    command.add_argument("--out", metavar="FILE.png", help="default: budgets.png in the first DIR")
    command.set_defaults(function=lambda args: budgets.draw(args.folders, args.out))
    command = commands.add_parser("sharpness", help="what measure.py found of each block's curvature")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote")
    command.set_defaults(function=lambda args: sharpness.draw(args.folder))
    command = commands.add_parser("spectrum", help="eigenvalues of each block, and distances between their spectra")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote")
    command.set_defaults(function=lambda args: spectra.draw(args.folder))
    command = commands.add_parser("curvature", help="largest eigenvalues against the step, and the threshold")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote, or a run that logged them")
    command.set_defaults(function=lambda args: curvature.draw(args.folder))
    command = commands.add_parser("frequency", help="loss from rare to frequent tokens, of one run or of two")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote")
    command.set_defaults(function=lambda args: frequency.draw(args.folder))
    commands.add_parser("lr", help="the learning rate of every block under a config")
    commands.add_parser("rules", help="every block's rate against the width, by every rule")
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
