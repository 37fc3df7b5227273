"""Your own UTF-8 text files as a data set; the last tenth is for validation. For documents see data/hub/prepare.py.

python data/text/prepare.py FILE [FILE ...] --name=NAME [--tokenizer=bytes|gpt2|bpe:4096|DIR] [--data_dir=DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.text import TextFiles, dataset_folder, first_bytes, write_parts
from blockwise.tokenizer import TOKENIZERS, tokenizer_named
from configurator import ArgumentParser


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="joined in this order")
    parser.add_argument("--name", required=True, help="of the data set: train with --dataset=NAME")
    parser.add_argument("--tokenizer", default="bytes", help=TOKENIZERS)
    parser.add_argument("--data_dir", default=Path(__file__).parents[1], help="write to DATA_DIR/NAME")
    args = parser.parse_args()
    folder = dataset_folder(args.data_dir, args.name)
    text = TextFiles(args.files)
    tokenizer = tokenizer_named(args.tokenizer, first_bytes(text.parts()["train"]))
    write_parts(folder, text.parts(), tokenizer, ", ".join(Path(f).name for f in args.files))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
