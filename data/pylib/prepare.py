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
from blockwise.data.text import prepare_corpus, read_text
from configurator import ArgumentParser

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def library_text():
    """Its .py files, by path, each ending in a line end; files that are not UTF-8 are left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    texts = []
    for path in paths:
        if LEFT_OUT.isdisjoint(path.split("/")):
            try:
                texts.append(read_text(folder / path))
            except UserError:
                continue
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)


if __name__ == "__main__":
    with exit_on_user_error():
        prepare_corpus(
            ArgumentParser(description=__doc__),
            "pylib",
            library_text,
            f"the standard library of Python {platform.python_version()}",
        )
