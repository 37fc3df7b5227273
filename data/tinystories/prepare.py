"""TinyStories in GPT-2's BPE, about 0.5 billion tokens: two million stories, validation as published.

    python data/tinystories/prepare.py                                     # from the hub: 1 GB to fetch, 2 GB of disk
    python data/tinystories/prepare.py --source=DIR                        # from its files train* and validation*
    python data/tinystories/prepare.py --source=FILE --val_source=FILE

Killed at any moment, the same command resumes from the finished shards.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.hub import add_arguments, add_tokenizer, prepare
from configurator import ArgumentParser

SPLITS = ["train", "validation"]


def main():
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser, "tinystories", "roneneldan/TinyStories", splits=SPLITS)
    add_tokenizer(parser)
    prepare(parser.parse_args(), SPLITS)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
