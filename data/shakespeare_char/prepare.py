"""Tiny Shakespeare (1.1 MB) by characters, as in nanoGPT: 65 characters, 1,003,854 training and 111,540 validation.

python data/shakespeare_char/prepare.py [--source=PATH] [--data_dir=DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.text import prepare_text, tiny_shakespeare
from blockwise.tokenizer import Tokenizer
from configurator import ArgumentParser


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="the text as a local file, instead of the download")
    parser.add_argument("--data_dir", default=Path(__file__).parents[1], help="write to DATA_DIR/shakespeare_char")
    args = parser.parse_args()
    text = tiny_shakespeare(args.source)
    chars = sorted(set(text))
    tokenizer = Tokenizer({"tokenizer": "chars", "vocab_size": len(chars), "chars": "".join(chars)})
    prepare_text(Path(args.data_dir) / "shakespeare_char", text, tokenizer, "tiny shakespeare")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
