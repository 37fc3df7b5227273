"""FineWeb-Edu (sample-10BT) in GPT-2's BPE, about 10 billion tokens; 0.05 % of the documents for validation.

python data/fineweb_edu/prepare.py                                  # from the hub: 28 GB to fetch, 40 GB of disk
python data/fineweb_edu/prepare.py --source=PATH                    # from files: .parquet, .jsonl, .json, .txt, ...
python data/fineweb_edu/prepare.py --max_docs=100000 --name=fineweb_edu_small
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
            ArgumentParser(description=__doc__),
            "fineweb_edu",
            "HuggingFaceFW/fineweb-edu",
            val_fraction=0.0005,
            config="sample-10BT",
        )
