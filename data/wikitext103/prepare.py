"""WikiText-103 (raw) in GPT-2's BPE, about 0.12 billion tokens: 29 thousand articles, validation as published.

python data/wikitext103/prepare.py                        # from the hub: 0.3 GB to fetch, 0.5 GB of disk
python data/wikitext103/prepare.py --source=DIR           # from its files train* and validation*
python data/wikitext103/prepare.py --source=FILE --val_source=FILE
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.hub import prepare_corpus
from configurator import ArgumentParser

SPLITS = ["train", "validation"]
HEADING = r" = [^=].*= *\n?$"  # its rows are lines: a heading of the first rank begins an article


if __name__ == "__main__":
    with exit_on_user_error():
        prepare_corpus(
            ArgumentParser(description=__doc__),
            "wikitext103",
            "Salesforce/wikitext",
            splits=SPLITS,
            config="wikitext-103-raw-v1",
            article=HEADING,
        )
