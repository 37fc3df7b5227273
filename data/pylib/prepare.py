"""The source text of the running Python's standard library, without its tests, as bytes.

python data/pylib/prepare.py [--data_dir=DIR]
python data/pylib/prepare.py --tokenizer=bpe:4096     # as data set pylib_bpe4096
"""

import platform
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockwise import UserError, exit_on_user_error
from blockwise.data.text import dataset_folder, prepare_text, read_text, split_text, tokenizer_suffix
from blockwise.tokenizer import TOKENIZERS, tokenizer_named
from configurator import ArgumentParser

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def library_text(folder):
    """Its .py files, by path, each ending in a line end; files that are not UTF-8 are left out."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    texts = []
    for path in paths:
        if LEFT_OUT.isdisjoint(path.split("/")):
            try:
                texts.append(read_text(folder / path))
            except UserError:
                continue
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default="bytes", help=TOKENIZERS)
    parser.add_argument("--name", help="of the data set (default: pylib, pylib_gpt2, pylib_bpe4096)")
    parser.add_argument("--data_dir", default=Path(__file__).parents[1], help="write to DATA_DIR/NAME")
    args = parser.parse_args()
    folder = dataset_folder(args.data_dir, args.name or "pylib" + tokenizer_suffix(args.tokenizer))
    text = library_text(Path(sysconfig.get_path("stdlib")))
    tokenizer = tokenizer_named(args.tokenizer, split_text(text)["train"])
    prepare_text(folder, text, tokenizer, f"the standard library of Python {platform.python_version()}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
