"""C4 (en) in T5's vocabulary of 32,100, about 160 billion tokens; validation as published.

python data/c4/prepare.py                                           # all: 305 GB to fetch, 800 GB of disk
python data/c4/prepare.py --max_docs=10000000                       # the first ten million documents
python data/c4/prepare.py --source=DIR --tokenizer_path=DIR         # files *train* and *validation*, no network
python data/c4/prepare.py --tokenizer=gpt2 --name=c4_gpt2
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.hub import add_arguments, prepare
from blockwise.files import GPT2
from blockwise.tokenizer import Tokenizer, pretrained
from configurator import ArgumentParser

COMMIT = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
SPLITS = ["train", "validation"]
T5_COMMIT = "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1"


def main():
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser, "c4", "allenai/c4", COMMIT, SPLITS)
    parser.add_argument("--tokenizer", choices=["t5", "gpt2"], default="t5", help="vocabulary (default: t5)")
    parser.add_argument(
        "--tokenizer_path", default="google-t5/t5-base", metavar="DIR_OR_ID",
        help="T5's: a folder with a tokenizer.json, or a model of the hub (default: google-t5/t5-base)",
    )  # fmt: skip
    parser.add_argument("--tokenizer_revision", default=T5_COMMIT, help="of that model (default: a fixed commit)")
    args = parser.parse_args()
    description = GPT2 if args.tokenizer == "gpt2" else pretrained("t5", args.tokenizer_path, args.tokenizer_revision)
    prepare(args, SPLITS, "en", Tokenizer(description))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
