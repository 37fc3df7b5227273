"""OpenWebText in GPT-2's BPE, about 9 billion tokens: 0.05 % of the documents for validation, chosen by a hash.

    python data/openwebtext/prepare.py                                  # from the hub: 24 GB to fetch, 44 GB of disk
    python data/openwebtext/prepare.py --source=PATH                    # from files: .parquet, .jsonl, .json, .txt
    python data/openwebtext/prepare.py --max_docs=100000 --name=openwebtext_small

Killed at any moment, the same command goes on from the shards that are finished.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import exit_on_user_error
from blockwise.data.shards import write_documents
from blockwise.data.sources import add_arguments, find_source, held_out, number_up_to
from blockwise.data.text import dataset_folder
from blockwise.tokenizer import GPT2, Tokenizer
from configurator import ArgumentParser

COMMIT = "79d93d786212f7344586290adb811d4ae6a1762c"  # 80 parquet files, 8,013,769 documents


def main():
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser, "openwebtext", "Skylion007/openwebtext", COMMIT, ["train"])
    parser.add_argument("--val_fraction", type=number_up_to(1), default=0.0005, help="of documents (default: 0.0005)")
    parser.add_argument("--seed", type=int, default=2357, help="of the choice for validation (default: 2357)")
    args = parser.parse_args()
    folder = dataset_folder(args.data_dir, args.name)
    tokenizer = Tokenizer(GPT2)
    source = find_source(args, ["train"])
    documents = held_out(source.texts("train", args.max_docs), args.val_fraction, args.seed, args.max_docs)
    settings = {"max_docs": args.max_docs, "seed": args.seed, "val_fraction": args.val_fraction}
    write_documents(folder, documents, tokenizer, source, settings, args.workers, args.shard_mb)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
