"""The command line's grammar, types and error messages, and the settings that it fills."""

import os
import re
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Literal

import pytest
from conftest import ROOT

from blockwise import UserError, exit_on_user_error
from blockwise.blocks import LR_MULT
from blockwise.keys import ABOVE_0, Keys, Range
from blockwise.settings import MIXTURE, TrainConfig
from configurator import ArgumentParser, configure, configure_command

FLAGS = {"dry_run": "check only", "print_config": "print it"}


def parse(*words):
    """(config, keys given, flags given)"""
    return configure(TrainConfig, list(words), "about", FLAGS)


def refusal(*words):
    with pytest.raises(UserError) as error:
        parse(*words)
    return str(error.value)


@pytest.fixture
def file(tmp_path):
    """Writes a config file, returns its path."""

    def write(text, name="run.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


# Words


def test_nothing_given():
    config, given, flags = parse()
    assert (config, given, flags) == (TrainConfig(), set(), set())


@dataclass
class Lists:
    blocks: Annotated[list[str], "names"] = field(default_factory=list)
    layers: Annotated[list[int] | None, "numbers"] = None


def test_a_list_is_typed_with_commas():
    def typed(*words):
        return configure(Lists, words, "")[0]

    assert typed("--blocks=QK,VO", "--layers=0,3") == Lists(["QK", "VO"], [0, 3])
    assert typed("--blocks=QK", "--layers=2") == Lists(["QK"], [2])
    assert typed("--blocks=['a,b']", "--layers=None") == Lists(["a,b"], None)
    for word in ("--layers=0,x", "--layers=x", "--blocks=1", "--layers=0.5"):
        with pytest.raises(UserError, match="expected a list of"):
            typed(word)


def test_given_keys_and_flags_include_defaults(file):
    config, given, flags = parse("--n_layer=12", "--dry_run", file("dropout = 0.0"), "--lr_mult.QK=8")
    assert config == TrainConfig()
    assert given == {"n_layer", "dropout", "lr_mult"}
    assert flags == {"dry_run"}


def test_later_wins(file):
    a, b = file("n_layer = 3\nn_head = 3", "a.py"), file("n_layer = 4", "b.py")
    assert parse("--n_layer=1", "--n_layer=2")[0].n_layer == 2
    assert parse(a, b)[0].n_layer == 4
    assert parse(b, a)[0].n_layer == 3
    assert parse(a, "--n_layer=5")[0].n_layer == 5
    assert parse("--n_layer=5", a)[0].n_layer == 3
    assert parse(a, b)[0].n_head == 3


@pytest.mark.parametrize(
    "word, value",
    [("learning_rate=1", 1.0), ("learning_rate=1e-3", 1e-3), ("learning_rate=-0.0", 0.0), ("grad_clip=0", 0.0),
     ("n_layer=1_000", 1000), ("bias=True", True), ("decay_lr=False", False), ("tie_weights=None", None),
     ("tie_weights=False", False), ("n_kv_head=None", None), ("n_kv_head=2", 2), ("norm_eps=1", 1.0),
     ("compile=auto", "auto"), ("compile=True", True), ("model_type=llama", "llama"), ("out_dir=123", "123"),
     ("out_dir=None", "None"), ("out_dir=a=b", "a=b"), ("wandb_run_name=", ""), ("device=cuda:1", "cuda:1")],
)  # fmt: skip
def test_values(word, value):
    config, given, _ = parse(f"--{word}")
    key = word.split("=")[0]
    assert (getattr(config, key), type(getattr(config, key)), given) == (value, type(value), {key})


WRONG_TYPES = {
    "float": ["learning_rate=True", "learning_rate=fast", "learning_rate='1'", "learning_rate=", "learning_rate=nan",
              "learning_rate=inf", "learning_rate=-1e999", "learning_rate=None", "learning_rate=1j",
              "learning_rate=[1]", "learning_rate=1" + "0" * 400, "lr_mult.QK=True", "lr_mult.QK=nan", "lr_mult.QK=",
              "lr_mult={'QK': 'fast'}"],
    "int": ["n_layer=True", "n_layer=2.0", "n_layer=2.5", "n_layer=two"],
    "int or None": ["n_kv_head=False", "n_kv_head=none"],
    "float or None": ["min_lr_ratio=True"],
    "True or False": ["bias=1", "bias=0", "bias=true", "bias=yes", "bias=None"],
    "True or False or None": ["tie_weights=1"],
    "True or False or 'auto'": ["compile=1"],
    "a dict of float or 'auto'": ["lr_mult=6", "lr_mult=None"],
    "a dict of float": ["wd_mult=auto"],
}  # fmt: skip


@pytest.mark.parametrize("word, expected", [(word, kind) for kind, words in WRONG_TYPES.items() for word in words])
def test_wrong_types(word, expected):
    key, _, text = word.partition("=")
    message = refusal(f"--{word}")
    assert message.startswith(key.split(".")[0])
    assert f"expected {expected}, got " in message
    assert text.strip("{'QK: }") in message


@pytest.mark.parametrize(
    "word, near",
    [
        ("--model_type=lama", "did you mean llama?"),
        ("--model_type=GPT2", "did you mean gpt2?"),
        ("--dtype=bf16", "did you mean bfloat16?"),
        ("--schedule=Cosine", "did you mean cosine?"),
        ("--init_from=resum", "did you mean resume?"),
        ("--compile=Auto", "did you mean auto?"),
        ("--lr_mult=Auto", "expected a dict of float or 'auto', got Auto; did you mean auto?"),
        ("--curvature_exclude=Enb,QK", "got Enb,QK; did you mean Emb?"),
        ("--curvature_exclude=['Emb', 'NORM']", "did you mean Norm?"),
        ("--model_type=mamba", "expected 'gpt2' or 'llama', got mamba"),
        ("--lerning_rate=1", "unknown key 'lerning_rate'; did you mean learning_rate?"),
        ("--learning-rate=1", "did you mean learning_rate?"),
        ("--LEARNING_RATE=1", "did you mean learning_rate?"),
        ("-n_layer=1", "did you mean n_layer or "),
        ("--dry-run", "did you mean dry_run?"),
        ("--dry_run=True", "--dry_run=True: expected --dry_run, which takes no value"),
        (f"--seed={2**64}", f"seed={2**64}: expected"),
        ("--zzzz=1", "unknown key 'zzzz': --help lists them"),
        ("--lr_mul.QK=1", "did you mean lr_mult or "),
        ("--lr_mult.Norms=1", "unknown entry 'Norms' of lr_mult; did you mean Norm?"),
        ("--lr_mult={'Nrm': 1}", "did you mean Norm?"),
        ("--wd_mult.emb=1", "did you mean Emb?"),
        ("--n_layer", "--n_layer: expected --n_layer=VALUE"),
        ("--n_layer.QK=1", "n_layer has no entries"),
        ("--n_layer=1 --n_head=1", "expected int"),
        ("--", "unknown key"),
        ("--=3", "unknown key"),
        ("-", "unknown key"),
        ("--__class__=3", "unknown key"),
        ("", "does not exist"),
    ],
)
def test_mistakes_name_their_near_misses(word, near):
    assert near in refusal(word)


def test_dict_entries():
    config, given, _ = parse("--lr_mult.QK=6", "--lr_mult={'VO': 2, 'Emb': 0.5}", "--lr_mult.VO=3")
    assert config.lr_mult == {**LR_MULT, "QK": 6.0, "VO": 3.0, "Emb": 0.5}
    assert all(type(value) is float for value in config.lr_mult.values())
    assert given == {"lr_mult"}
    assert parse()[0].lr_mult == TrainConfig().lr_mult == LR_MULT == dict(Emb=10, QK=8, VO=4, FFN=6, Norm=1, Head=10)


def test_a_word_in_the_place_of_a_dict(file):
    """The later one replaces the earlier; a dict over the word, like one over the default, changes what it names."""
    for words in (["--lr_mult.QK=6", "--lr_mult=auto"], [file("lr_mult = dict(QK=6)\nlr_mult = 'auto'")]):
        assert parse(*words)[0].lr_mult == "auto"
    for dict_ in ("--lr_mult={'QK': 6}", file("lr_mult = dict(QK=6)")):
        config, given, _ = parse("--lr_mult=auto", dict_, "--lr_mult.VO=2")
        assert config.lr_mult == {**LR_MULT, "QK": 6.0, "VO": 2.0} and given == {"lr_mult"}
    message = refusal("--lr_mult=auto", "--lr_mult.QK=6")
    assert message == "--lr_mult.QK: lr_mult=auto has no entries; expected a dict in its place: --lr_mult=\"{'QK': 6}\""
    assert "entry 'Nrm'" in refusal("--lr_mult=auto", "--lr_mult={'Nrm': 6}")
    assert "config file" in refusal("--lr_mult=auto", file("lr_mult['QK'] = 6"))


# Files


def test_file_sees_what_came_before_it(file):
    path = file("max_iters = 2 * max_iters\nlr_decay_iters = max_iters\nmin_lr = learning_rate / 10")
    config, given, _ = parse("--max_iters=50", "--learning_rate=1", path, path)
    assert (config.max_iters, config.lr_decay_iters, config.min_lr) == (200, 200, 0.1)
    assert given == {"max_iters", "learning_rate", "lr_decay_iters", "min_lr"}


def test_file_may_compute(file):
    config, given, _ = parse(
        file(
            '"""A run."""\n'
            "import math, time\n"
            "from pathlib import Path\n"
            "def half(n):\n    return n // 2\n"
            "class Helper:\n    width = 64\n"
            "_layers = [half(n) for n in (4, 8)]\n"
            "n_layer = _layers[1]\n"
            "n_embd = Helper.width * int(math.sqrt(4))\n"
            "if n_layer > 3:\n    n_head = 2\n"
            "n_inner: int = 4 * n_embd\n"
            "wandb_run_name = f'run-{time.time():.0f}'\n"
            "out_dir = Path(__file__).stem\n"
        )
    )
    assert (config.n_layer, config.n_embd, config.n_head, config.n_inner, config.out_dir) == (4, 128, 2, 512, "run")
    assert config.wandb_run_name.startswith("run-")
    assert given == {"n_layer", "n_embd", "n_head", "n_inner", "wandb_run_name", "out_dir"}


def test_file_dicts(file):
    path = file("lr_mult = dict(QK=2)\nwd_mult['Norm'] = 0\n")
    config, given, _ = parse("--lr_mult.Emb=5", path)
    assert config.lr_mult == {**LR_MULT, "Emb": 5.0, "QK": 2.0}
    assert (config.wd_mult["Norm"], config.wd_mult["QK"]) == (0.0, 1.0)
    assert given == {"lr_mult", "wd_mult"}
    assert TrainConfig().wd_mult["Norm"] == parse()[0].wd_mult["Norm"] == 1.0


def test_a_key_that_a_function_of_the_file_sets_counts(file):
    config, given, _ = parse(file("def small():\n    global n_layer\n    n_layer = 2\nsmall()"))
    assert (config.n_layer, given) == (2, {"n_layer"})


def test_numpys_numbers(file):
    config, _, _ = parse(file("import numpy as np\nlearning_rate = np.float64(0.5)\nn_layer = np.int64(3)"))
    assert (config.learning_rate, config.n_layer) == (0.5, 3)
    assert (type(config.learning_rate), type(config.n_layer)) == (float, int)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("lerning_rate = 1", ["unknown key 'lerning_rate'", "run.py", "did you mean learning_rate?"]),
        ("from math import pi", ["unknown key 'pi'"]),
        ("lr_mult['Nrm'] = 1", ["unknown entry 'Nrm'", "run.py", "lr_mult", "did you mean Norm?"]),
        ("lr_mult = dict(Nrm=1)", ["unknown entry 'Nrm'", "did you mean Norm?"]),
        ("lr_mult = 6", ["run.py: lr_mult: expected a dict of float or 'auto', got 6"]),
        ("n_layer = '3'", ["run.py: n_layer: expected int, got '3'"]),
        ("n_layer = True", ["n_layer: expected int, got True"]),
        ("learning_rate = float('nan')", ["learning_rate: expected float, got nan"]),
        ("learning_rate = -float('inf')", ["learning_rate: expected float, got -inf"]),
        ("learning_rate = lambda: 1", ["learning_rate: expected float"]),
        ("wandb_run_name = 5", ["wandb_run_name: expected str, got 5"]),
        ("bias = 'True'", ["bias: expected True or False, got 'True'"]),
        ("dtype = 'bf16'", ["dtype: expected", "did you mean bfloat16?"]),
        ("n_layer = 3\n\n1 / 0\n", ["run.py, line 3", "ZeroDivisionError"]),
        ("def f():\n    raise RuntimeError('ouch')\n\nf()", ["run.py, line 2", "RuntimeError: ouch"]),
        ("n_layer = 3\nn_head = = 3", ["run.py, line 2", "SyntaxError"]),
        ("import no_such_module", ["run.py, line 1", "no_such_module"]),
        ("raise SystemExit(3)", ["run.py, line 1", "SystemExit"]),
        ("n_layer = undefined", ["run.py, line 1", "undefined"]),
        ("import numpy as np\nmodel_type = np.array([1, 2])", ["model_type: expected"]),
    ],
)
def test_mistakes_in_files(file, text, parts):
    message = refusal(file(text))
    assert all(part in message for part in parts), message


def test_missing_file(file, tmp_path):
    file("", "gpt2_small.py")
    message = refusal(str(tmp_path / "gpt2_smal.py"))
    assert f"{tmp_path}/gpt2_smal.py does not exist; did you mean {tmp_path}/gpt2_small.py?" in message
    assert refusal("nowhere/at_all.py") == "config file nowhere/at_all.py does not exist"


def test_a_mistake_is_one_line_and_status_2(file, capsys, monkeypatch):
    path = file("raise ValueError('one\\n\\ntwo')")
    for rank, expected in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            parse(path)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == expected
        assert ("ValueError: one two" in error) == (expected == 1)


def test_a_file_includes_another_from_its_own_folder(file, tmp_path):
    (tmp_path / "base").mkdir()
    file("max_iters = 7\ninclude('more.py')\nlearning_rate = 1.0", "base/a.py")
    file("warmup_iters = max_iters - 1", "base/more.py")
    config, given, _ = parse(file("include('base/a.py')\nlearning_rate /= 4\nassert __file__.endswith('run.py')"))
    assert (config.max_iters, config.warmup_iters, config.learning_rate) == (7, 6, 0.25)
    assert given == {"max_iters", "warmup_iters", "learning_rate"}


def test_mistakes_in_an_included_file_name_it(file):
    file("n_layer = 1\nn_layer = 1 / 0", "a.py")
    assert re.search(r"config file .*a\.py, line 2: ZeroDivisionError", refusal(file("include('a.py')")))
    assert re.search(r"config file .*b\.py does not exist; did you mean .*a\.py", refusal(file("include('b.py')")))
    assert "RecursionError" in refusal(file("include('run.py')"))


# nanoGPT

NANO_GPT = dict(
    out_dir="out", eval_interval=2000, log_interval=1, eval_iters=200, eval_only=False, always_save_checkpoint=True,
    init_from="scratch", wandb_log=False, wandb_project="owt", wandb_run_name="gpt2", dataset="openwebtext",
    gradient_accumulation_steps=40, batch_size=12, block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0,
    bias=False, learning_rate=6e-4, max_iters=600000, weight_decay=0.1, beta1=0.9, beta2=0.95, grad_clip=1.0,
    decay_lr=True, warmup_iters=2000, lr_decay_iters=600000, min_lr=6e-5,
    backend="auto", device="auto", dtype="auto", compile="auto",  # the four that differ
)  # fmt: skip


def test_defaults_are_nano_gpts():
    config = asdict(TrainConfig().resolved())  # weight decay and betas follow from the optimizer
    assert {key: config[key] for key in NANO_GPT} == NANO_GPT


NANO_GPT_FILES = {
    "train_gpt2": """
wandb_log = True
wandb_project = 'owt'
wandb_run_name='gpt2-124M'
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 600000
lr_decay_iters = 600000
eval_interval = 1000
eval_iters = 200
log_interval = 10
weight_decay = 1e-1
""",
    "train_shakespeare_char": """
out_dir = 'out-shakespeare-char'
eval_interval = 250 # keep frequent because we'll overfit
eval_iters = 200
log_interval = 10 # don't print too too often
always_save_checkpoint = False
wandb_log = False # override via command line if you like
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256 # context of up to 256 previous characters
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3 # with baby networks can afford to go a bit higher
max_iters = 5000
lr_decay_iters = 5000 # make equal to max_iters usually
min_lr = 1e-4 # learning_rate / 10 usually
beta2 = 0.99 # make a bit bigger because number of tokens per iter is small
warmup_iters = 100 # not super necessary potentially
""",
    "finetune_shakespeare": """
import time
out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False # feel free to turn on
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())
wandb_run_name = f'{wandb_run_name}-{learning_rate}'
dataset = 'shakespeare'
always_save_checkpoint = False
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20
learning_rate = 3e-5
decay_lr = False
""",
}


@pytest.mark.parametrize("name", NANO_GPT_FILES)
def test_nano_gpts_files(file, name):
    config, given, _ = parse(file(NANO_GPT_FILES[name]))
    assigned = [line.split("=")[0].strip() for line in NANO_GPT_FILES[name].splitlines() if "=" in line.split("#")[0]]
    assert given == set(assigned) and len(given) >= 12
    config.resolved()
    if name == "train_shakespeare_char":
        assert (config.n_embd, config.dropout, config.min_lr, config.always_save_checkpoint) == (384, 0.2, 1e-4, False)
    if name == "finetune_shakespeare":
        assert config.wandb_run_name.startswith("ft-") and config.wandb_run_name.endswith("-0.0006")


def test_nano_gpts_command_line(file):
    words = (
        "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12",
        "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
    )  # fmt: skip
    config, _, _ = parse(file(NANO_GPT_FILES["train_shakespeare_char"]), *words)
    assert (config.n_layer, config.compile, config.dropout, config.beta2) == (4, False, 0.0, 0.99)


# --help, settings


def test_help_lists_every_key_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-X", "importtime", "train.py", "config/none.py", "--help", "--no_such_key"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == 0
    for key in [f.name for f in fields(TrainConfig)]:
        assert f"\n  --{key}=" in answer.stdout
    for flag in ("dry_run", "print_config", "help"):
        assert f"\n  --{flag}\n" in answer.stdout
    imported = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    assert "configurator" in imported
    assert not {"torch", "numpy"} & imported
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("name, value", [(None, None), ("PYTORCH_ALLOC_CONF", "a"), ("PYTORCH_CUDA_ALLOC_CONF", "a")])
def test_memory_grows_in_place_unless_the_user_has_set_how(name, value):
    script = "import os, runpy, sys\nsys.argv[1:] = ['--help']\ntry: runpy.run_path('train.py', run_name='__main__')\n"
    script += "finally: print({k: v for k, v in os.environ.items() if 'ALLOC_CONF' in k}, 'torch' in sys.modules)"
    env = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key} | ({name: value} if name else {})
    words = [sys.executable, "-c", script]
    answer = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True).stdout.splitlines()[-1]
    assert answer == f"{ {name: value} if name else {'PYTORCH_ALLOC_CONF': 'expandable_segments:True'} } False"


def test_help_states_type_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("-h")
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.startswith("about\n")
    assert "  --n_layer=12  (int, at least 1)\n        transformer blocks\n" in text
    assert "  --dropout=0.0  (float, in [0, 1))\n" in text and "  --bias=False  (True or False)\n" in text
    assert "(int or None, at least 1)" in text and "('gpt2' or 'llama')" in text and "(True or False or 'auto')" in text
    assert "  --dry_run\n        check only\n" in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_key_has_a_meaning():
    for f in fields(TrainConfig):
        assert len(f.type.__metadata__[0]) > 5, f.name


OUT_OF_RANGE = {
    "at least 1": ["n_layer=0", "block_size=0", "batch_size=-1", "gradient_accumulation_steps=0", "eval_iters=0",
                   "n_kv_head=0", "n_inner=0", "vocab_size=0"],
    "at least 0": ["learning_rate=-1.0", "weight_decay=-1.0", "max_iters=-1", "eval_interval=-1", "seed=-1",
                   "lr_mult.QK=-1.0", "wd_mult.Emb=-1.0"],
    "in [0, 1)": ["dropout=1.0", "dropout=-0.1", "beta1=1.0", "beta2=1.5"],
    "in [0, 1]": ["min_lr_ratio=-1.0"],
    "above 0": ["rope_theta=0.0", "norm_eps=0.0"],
    "-1 or at least 2": ["keep_checkpoints=1", "keep_checkpoints=-2"],
    MIXTURE: ["dataset=", "dataset=.."],
    "a folder's name": ["out_dir="],
}  # fmt: skip


@pytest.mark.parametrize("word, expected", [(word, kind) for kind, words in OUT_OF_RANGE.items() for word in words])
def test_values_out_of_range(word, expected):
    assert refusal(f"--{word}") == f"{word}: expected {expected}"


@dataclass
class Ranges(Keys):
    rates: Annotated[dict[str, list[float]], "of arms", ABOVE_0] = field(default_factory=dict)
    count: Annotated[int | Literal["all"], "of what there is", Range(2, 9, also=-1)] = 2
    share: Annotated[float | None, "of the whole", Range(0, 1, "(]")] = None


@pytest.mark.parametrize(
    "word, expected",
    [("--rates.a=1,0", "rates.a=[1.0, 0.0]: expected above 0"), ("--rates.a=1,2", None), ("--rates={}", None)]
    + [(f"--count={n}", f"count={n}: expected -1 or in [2, 9]") for n in (-2, 0, 1, 10)]
    + [(f"--count={n}", None) for n in (-1, 2, 9, "all")]
    + [(f"--share={x}", f"share={x}: expected in (0, 1]") for x in (0.0, 1.5)]
    + [(f"--share={x}", None) for x in (1, 0.1, "None")]
    + [(f"--count={2**63}", f"count={2**63}: expected below 2**63")],
)
def test_the_range_in_an_annotation(word, expected):
    """Of every number in a list or a dict, each end by itself; a word in a number's place has no range."""
    try:
        configure(Ranges, [word], "")
        refused = None
    except UserError as error:
        refused = str(error)
    assert refused == expected


@pytest.mark.parametrize("key", ["out_dir", "data_dir"])
def test_a_path_as_it_was_meant(key, file, monkeypatch, tmp_path):
    """In a file as on the command line, whose script may have Windows' line ends."""
    monkeypatch.setenv("HOME", "/home/me")
    path = file(f"{key} = '~/runs'\nwandb_run_name = '~'")
    for words in ([f"--{key}=~/runs"], [f"--{key}=~/runs\r"], [path], [path + "\r"]):
        assert getattr(parse(*words)[0], key) == "/home/me/runs"
    assert parse(path)[0].wandb_run_name == "~"  # no path
    assert parse(f"--{key}=a~b", "--dataset=mine\r", "--init_from=hf:x\r")[0].dataset == "mine"
    parser = ArgumentParser()
    parser.add_argument("files", nargs="+")
    parser.add_argument("--data_dir")
    args = parser.parse_args(["~/a.txt\r", "b~", "--data_dir=~/data"])
    assert (args.files, args.data_dir) == (["/home/me/a.txt", "b~"], "/home/me/data")


@dataclass
class Words(Keys):
    words = "folders"
    folders: Annotated[list[str], "folders of runs"] = field(default_factory=list)
    out: Annotated[str | None, "file"] = None


@dataclass
class Word(Keys):
    words = "folder"
    folder: Annotated[str | None, "folder of a study"] = None


def test_arguments_without_a_key(capsys):
    """A command with names for them has no config files."""
    assert configure(Words, ["a.py", "--out=x", "b"], "")[0] == Words(["a.py", "b"], "x")
    assert configure_command({"one": Word, "many": Words}, ["one", "a"], "")[:2] == ("one", Word("a"))
    for cls, words, expected in (
        (Words, [], "folders is missing: expected folders of runs"),
        (Word, ["a", "b"], "unexpected 'b' after 'a': expected one, folder of a study"),
    ):
        with pytest.raises(UserError, match=expected):
            configure(cls, words, "")
    with pytest.raises(UserError, match=r"unknown command 'man': expected one or many, .*did you mean many"):
        configure_command({"one": Word, "many": Words}, ["man"], "")
    for words, part in (
        ([], "about"),
        (["--help"], "about"),
        (["one", "--help"], "  folder\n        folder of a study\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            configure_command({"one": Word, "many": Words}, words, "about")
        assert not stop.value.code and part in capsys.readouterr().out


@pytest.mark.parametrize(
    "word",
    ["max_iters=0", "warmup_iters=0", "eval_interval=0", "log_interval=0", "grad_clip=0", "learning_rate=0", "beta1=0",
     "lr_mult.QK=0", "keep_checkpoints=-1", "keep_checkpoints=2", "warmup_iters=10000000", "min_lr_ratio=0"],
)  # fmt: skip
def test_values_just_inside_their_range(word):
    parse(f"--{word}")[0].resolved()


def resolved(**options):
    return TrainConfig(**options).resolved()


def test_resolved_fills_in_what_follows():
    gpt2, llama = resolved(), resolved(model_type="llama", n_embd=96, n_head=6)
    assert (gpt2.n_kv_head, gpt2.n_inner, gpt2.norm_eps, gpt2.tie_weights) == (12, 3072, 1e-5, True)
    assert (llama.n_kv_head, llama.n_inner, llama.norm_eps, llama.tie_weights) == (6, 384, 1e-6, False)
    assert gpt2.lr_mult == LR_MULT and gpt2.min_lr == 6e-5
    assert gpt2.vocab_size is None
    assert gpt2.resolved() == gpt2 and llama.resolved() == llama


def test_resolved_keeps_what_is_given():
    given = dict(n_kv_head=3, n_inner=100, norm_eps=1e-4, vocab_size=7)
    for tie in (True, False):
        for model_type in ("gpt2", "llama"):
            config = resolved(model_type=model_type, tie_weights=tie, **given)
            assert {key: getattr(config, key) for key in given} == given
            assert config.tie_weights is tie


def test_without_blockwise_every_multiplier_is_1(file):
    path = file("lr_mult = dict(QK=3)\nwd_mult['Norm'] = 0")
    for words in ((path, "--blockwise=False"), ("--blockwise=False", path)):
        config = parse(*words)[0]
        assert config.lr_mult["QK"] == 3.0
        assert config.resolved().lr_mult == dict.fromkeys(LR_MULT, 1.0)
        assert config.resolved().wd_mult == {**dict.fromkeys(LR_MULT, 1.0), "Norm": 0.0}


def test_min_lr_ratio():
    assert resolved(min_lr_ratio=0.1, learning_rate=0.5, min_lr=7.0).min_lr == 0.05
    assert resolved(min_lr_ratio=0.0, min_lr=7.0).min_lr == 0.0
    assert resolved(min_lr=7.0).min_lr == 7.0


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(n_embd=770), "n_embd=770: expected a multiple of n_head=12"),
        (dict(n_kv_head=5), "n_head=12: expected a multiple of n_kv_head=5"),
        (dict(n_kv_head=24), "n_head=12: expected a multiple of n_kv_head=24"),
        (dict(model_type="llama", n_embd=36), "n_embd=36: expected an even multiple of n_head=12"),
    ],
)
def test_shapes_that_do_not_divide(options, expected):
    with pytest.raises(UserError) as error:
        resolved(**options)
    assert str(error.value).startswith(expected)
    resolved(model_type="gpt2", n_embd=36)
