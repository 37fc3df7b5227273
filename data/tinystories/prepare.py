"""TinyStories in GPT-2's BPE, about 0.5 billion tokens: two million stories, validation as published.

python data/tinystories/prepare.py                                     # from the hub: 1 GB to fetch, 2 GB of disk
python data/tinystories/prepare.py --source=DIR                        # from its files train* and validation*
python data/tinystories/prepare.py --source=FILE --val_source=FILE
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.hub import prepare_corpus
from configurator import ArgumentParser

if __name__ == "__main__":
    with exit_on_user_error():
        prepare_corpus(
            ArgumentParser(description=__doc__), "tinystories", "roneneldan/TinyStories", splits=["train", "validation"]
        )
