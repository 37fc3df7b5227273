"""MiniPile in GPT-2's BPE, about 1.5 billion tokens: a million documents, and 500 for validation as published.

python data/minipile/prepare.py                                     # from the hub: 3 GB to fetch, 6 GB of disk
python data/minipile/prepare.py --source=DIR                        # from its files train* and validation*
python data/minipile/prepare.py --source=FILE --val_source=FILE
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.hub import prepare_corpus
from configurator import ArgumentParser

COMMIT = "18ad1b0c701eaa0de03d3cecfdd769cbc70ffbd0"


if __name__ == "__main__":
    with exit_on_user_error():
        prepare_corpus(
            ArgumentParser(description=__doc__), "minipile", "JeanKaddour/minipile", COMMIT, ["train", "validation"]
        )
