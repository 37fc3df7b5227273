"""OpenWebText in GPT-2's BPE, about 9 billion tokens: 0.05 % of the documents for validation, chosen by a hash.

python data/openwebtext/prepare.py                                  # from the hub: 24 GB to fetch, 44 GB of disk
python data/openwebtext/prepare.py --source=PATH                    # from files: .parquet, .jsonl, .json, .txt, ...
python data/openwebtext/prepare.py --max_docs=100000 --name=openwebtext_small
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.hub import prepare_corpus
from configurator import ArgumentParser

COMMIT = "79d93d786212f7344586290adb811d4ae6a1762c"  # 80 parquet files, 8,013,769 documents


if __name__ == "__main__":
    with exit_on_user_error():
        prepare_corpus(
            ArgumentParser(description=__doc__), "openwebtext", "Skylion007/openwebtext", COMMIT, val_fraction=0.0005
        )
