"""Tiny Shakespeare (1.1 MB) in GPT-2's BPE, as in nanoGPT: 301,966 training and 36,059 validation tokens.

python data/shakespeare/prepare.py [--source=PATH] [--data_dir=DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.text import prepare_text, tiny_shakespeare
from blockwise.files import GPT2
from blockwise.tokenizer import Tokenizer
from configurator import ArgumentParser


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="the text as a local file, instead of the download")
    parser.add_argument("--data_dir", default=Path(__file__).parents[1], help="write to DATA_DIR/shakespeare")
    args = parser.parse_args()
    folder = Path(args.data_dir) / "shakespeare"
    prepare_text(folder, tiny_shakespeare(args.source), Tokenizer(GPT2), "tiny shakespeare")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
