"""Every command of the pages and of the entry points' docstrings is taken by its parser; those that train, train."""

import ast
import json
import re
import runpy
import shlex
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, run
from helpers import PAGES, SHORT, TINY

import configurator
from blockwise import blocks
from blockwise.checkpoint import newest_checkpoint
from blockwise.settings import TrainConfig
from blockwise.signals import STOPPING
from blockwise.study import report

# Besides README, which is pasted as a whole
TRAINING_PAGES = {ROOT / f"docs/{name}.md" for name in ("running", "machines", "methods", "measuring")}
ENTRIES = [
    path
    for pattern in ("*.py", "data/*/prepare.py", "bench/*.py", "docs/*.py", "blockwise/*.py")
    for path in sorted(ROOT.glob(pattern))
]


def commands_of(page):
    """The command lines in the sh blocks of a page."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        yield from commands_in(block)


def commands_in(block):
    lines = (line.split("#")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    return [command for line in lines for command in line.split(" && ") if command]


def commands_of_docstring(path):
    """Without what stands in brackets, which may be left out."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    lines = re.findall(r"^\s*((?:python|torchrun|make) .+)$", text, re.MULTILINE)
    return commands_in(re.sub(r" ?\[[^]]*\]", "", "\n".join(lines)))


def runs_here(command):
    """Whether the tests train by it: layers that come later need more of them than a test has, documents an end."""
    return "train.py" in command and not any(key in command for key in ("--arch_warmup", "--doc_mask"))


COMMANDS = {(page, command) for page in PAGES for command in commands_of(page)}
RUN = sorted({command for page, command in COMMANDS if page in TRAINING_PAGES and runs_here(command)})
ALL = sorted({command for _, command in COMMANDS} | {c for path in ENTRIES for c in commands_of_docstring(path)})


def test_the_pages_have_commands():
    assert len(list(commands_of(ROOT / "README.md"))) > 10 and len(RUN) > 12 and len(ALL) > 120


READERS_OWN = ("FILE\\.py", "config/mine\\.py", "out/tune/rates\\.py")  # config files that a reader has


class Taken(BaseException):
    """Raised once a command line was parsed, before anything is done."""


@pytest.fixture
def parse_only(monkeypatch):
    """Every entry point ends where it has parsed its command line."""
    configure, parse_args = configurator.configure, configurator.ArgumentParser.parse_args

    def taken(*args, **options):
        config = configure(*args, **options)[0]
        if isinstance(config, TrainConfig):
            config.resolved()
        raise Taken

    def arguments_taken(parser, *args):
        parse_args(parser, *args)
        raise Taken

    def nothing_done(*args):
        raise Taken

    monkeypatch.setattr(configurator, "configure", taken)
    monkeypatch.setattr(configurator.ArgumentParser, "parse_args", arguments_taken)
    monkeypatch.setattr(blocks, "without_weights", nothing_done)
    monkeypatch.setattr(report, "again", nothing_done)
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in handlers.items():  # of train.py
        signal.signal(number, handler)


@pytest.mark.parametrize("command", ALL)
def test_a_command_is_taken(command, parse_only, monkeypatch, capfd):
    program, *words = shlex.split(re.sub("|".join(READERS_OWN), "config/demo.py", command))
    if program in ("srun", "ray") and "python" in words:  # which start what follows
        program, *words = words[words.index("python") :]
    if program == "make":
        assert subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True).returncode == 0
    elif program == "pip":
        name = re.search(r'^name = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
        assert words == ["install", name]
    elif program == "export":
        assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in words)
    elif program == "ray" or program.startswith("head="):
        return  # the cluster's own
    elif words[:2] == ["-m", "blockwise.blocks"]:
        with pytest.raises(Taken):
            blocks.main(words[2:])
    else:
        assert program in ("python", "torchrun")
        while not words[0].endswith(".py"):  # torchrun's own
            assert program == "torchrun" and words.pop(0).startswith("--")
        if words[0].startswith("docs/"):
            return  # they have no arguments; what they write has tests
        end = SystemExit if "--help" in words else Taken
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "path", [str((ROOT / words[0]).parent), *sys.path])
        with pytest.raises(end) as ended:
            runpy.run_path(words[0], run_name="__main__")
        assert end is Taken or not ended.value.code, capfd.readouterr().err


@pytest.mark.parametrize("command", RUN)
def test_commands_that_train(command, data_dir, tmp_path):
    """Each runs its first steps, here in one process and at a size that fits a test."""
    words = shlex.split(command)
    words = words[words.index("train.py") + 1 :]
    out = [w for w in words if w.startswith("--out_dir")] or ["--out_dir=out"]
    out = [f"--out_dir={tmp_path}/{out[0].split('=')[1]}"]
    small = (*TINY, *SHORT, f"--data_dir={data_dir}", *out)
    words = [w for w in words if not w.startswith(("--out_dir", "--device=cuda"))]
    flags = [w for w in words if w in ("--help", "--print_config", "--dry_run")]
    if "--help" in flags:
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 0
        return
    if "--init_from=resume" in words:
        run(*[w for w in words if w != "--init_from=resume"], *small, "--max_iters=1")
    assert run(*words, *small) == 0


# The README, pasted from top to bottom

SCALE = 200  # updates of a run over those in the test


@pytest.fixture
def paste(data_dir, tmp_path, monkeypatch):
    """Runs a command of the README in a folder of its own, small: for its word after `python`, its words."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "kjv").symlink_to(data_dir / "tiny")
    monkeypatch.chdir(tmp_path)

    def pasted(script, words, *more):
        if script == "train.py":
            return train_small(words, f"--data_dir={folder}")
        monkeypatch.setattr(sys, "argv", [script, *words, *more])
        monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            assert not end.code, (script, words)

    return pasted


def train_small(words, data):
    """train.py at tiny sizes; afterwards the run in its out_dir is the one that this command asks for."""
    config, _, flags = configurator.configure(TrainConfig, words, "", {"dry_run": "", "print_config": "", "help": ""})
    steps = {key: max(getattr(config, key) // SCALE, 1) for key in ("max_iters", "lr_decay_iters", "warmup_iters")}
    small = [*TINY, *SHORT, data, f"--eval_interval={steps['max_iters']}", "--dataset=kjv"]
    small += [f"--{key}={value}" for key, value in steps.items()]
    before = newest_checkpoint(config.out_dir)
    resumes = config.init_from in ("resume", "auto")
    if flags:
        return run(*words, *small)
    assert resumes or before is None, f"{words} starts anew in {config.out_dir}, which holds another run"
    then = json.loads((before.parent / "config.json").read_text()) if before else {}
    assert run(*[word for word in words if not word.startswith("--device")], *small) == 0
    assert newest_checkpoint(config.out_dir).stem == f"ckpt_{steps['max_iters']:08d}"
    now = json.loads((newest_checkpoint(config.out_dir).parent / "config.json").read_text())
    assert now["blockwise"] == config.blockwise and now["optimizer"] == config.optimizer
    same = ("lr_mult", "blockwise", "optimizer", "learning_rate", "min_lr", "lr_decay_iters")
    assert not then or [now[key] for key in same] == [then[key] for key in same], f"{words} continues another run"


# What makes a command small; those of make are in the Makefile, of which test_a_command_is_taken sees that it has them
FEW = {
    "sample.py": ("--max_new_tokens=4", "--num_samples=1"),
    "measure.py": ("--batches=1", "--draws=1", "--batch_size=2"),
}


def test_the_readme_pasted_in_order(paste, tmp_path):
    """Every run ends where its command says, and no command takes another one's folder."""
    for command in commands_of(ROOT / "README.md"):
        program, *words = shlex.split(command)
        if program in ("python", "torchrun") and "-m" not in words and "--help" not in words:
            start = next(i for i, word in enumerate(words) if word.endswith(".py"))
            script, *words = words[start:]
            if not script.startswith("data/"):
                words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words]
                paste(script, words, *FEW.get(script, ()))
