"""Any text corpus as a data set: one of the Hugging Face hub, or a local folder or file that `datasets` reads.

    python data/hub/prepare.py HuggingFaceFW/fineweb-edu --config=sample-10BT --max_tokens=100000000 --name=fineweb
    python data/hub/prepare.py DIR --text_column=contents --tokenizer=bpe:16384 --name=mine
    python data/hub/prepare.py FILE.jsonl.zst --val_fraction=0.001 --bad_rows=skip

Each row is a document, and an end-of-text token follows it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.hub import add_arguments, add_tokenizer, prepare
from configurator import ArgumentParser


def main():
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser)
    add_tokenizer(parser)
    prepare(parser.parse_args())


if __name__ == "__main__":
    with exit_on_user_error():
        main()
