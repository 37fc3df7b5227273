"""The house holds: who imports whom, every config trains, pages and modules are what they say."""

import ast
import re
import runpy
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT, metrics, run
from helpers import PAGES, SHORT, TINY

import compare
from blockwise.settings import TrainConfig
from configurator import configure
from model import ModelConfig, Transformer

LEAVES = sorted((ROOT / "blockwise").glob("*.py"))
ROOMS = sorted((ROOT / "blockwise").glob("*/*.py"))
# Rooms that others may import; they themselves import none
BELOW = dict.fromkeys(("training", "measuring"), ("curvature", "data", "huggingface"))
GROUND = {
    "blockwise.blocks", "blockwise.exporters", "blockwise.files", "blockwise.keys", "blockwise.matmul",
    "blockwise.muon", "blockwise.rules", "blockwise.schedules", "blockwise.settings", "blockwise.sharded_files",
    "blockwise.spelling", "blockwise.split_qkv",
}  # fmt: skip
STUDIES = sorted((ROOT / "config").glob("study_*.py"))
CONFIGS = sorted(set((ROOT / "config").rglob("*.py")) - set(STUDIES))
# Millions of parameters with GPT-2's vocabulary (arXiv 2502.19002's released shapes)
SIZES = {
    "gpt2_small": 124.4, "llama_134m": 133.9, "llama_230m": 228.3, "llama_250m": 237.3, "llama_500m": 522.0,
    "llama_750m": 743.4, "llama_900m": 898.3, "tinyllama": 1175.0, "llama_2b": 2015.5,
}  # fmt: skip


def imports_of(path):
    """Every module that a file names in an import, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def project_imports(path):
    """What a file imports of the project: "model", "blockwise.blocks", "blockwise.training.start"."""
    names = {p.stem for p in ROOT.glob("*.py")}
    return {name for name in imports_of(path) if name in names or name.startswith("blockwise.")}


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: p.name)
def test_a_leaf_imports_no_other_project_file(path):
    """Except for the ground: block table, rules, keys, files, products, Muon, and the package itself (UserError)."""
    assert project_imports(path) <= GROUND


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_room_imports_leaves_itself_and_the_rooms_below(path):
    own, leaves = path.parent.name, {f"blockwise.{p.stem}" for p in LEAVES}
    rooms = {name.split(".")[1] for name in project_imports(path) - leaves if name.startswith("blockwise.")}
    assert rooms <= {own, *BELOW.get(own, ())}
    assert {name for name in project_imports(path) if not name.startswith("blockwise.")} == set()


FOLDERS = ("blockwise", "data", "bench")
LONGER = {"train.py": 320, "blocks.py": 560}  # blocks.py: one file without imports, for other people's trainers
PRODUCT = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    """No function has more than 100 lines, but for the one that is to be read beside nanoGPT's loop."""
    text = path.read_text()
    entry = path.parent == ROOT and path.name not in ("model.py", "configurator.py")
    assert len(text.splitlines()) <= LONGER.get(path.name, 200 if entry else 370)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (path.name, node.name) != ("train.py", "train"):
            assert node.end_lineno - node.lineno < 100, node.name


def test_entry_points_do_not_import_each_other():
    entries = {"train", "sample", "export", "plot", "compare", "measure", "tune"}
    for name in entries | {"model", "configurator"}:
        assert not set(imports_of(ROOT / f"{name}.py")) & entries


def test_what_answers_at_once_imports_no_torch():
    figures = (ROOT / "blockwise/figures").glob("*.py")
    for path in (ROOT / "plot.py", ROOT / "configurator.py", ROOT / "blockwise/__init__.py", *figures):
        assert "torch" not in set(imports_of(path))
    leaves = ("settings", "signals", "blocks", "curves", "schedules", "logger", "rundir", "tokenizer")
    for name in (*leaves, "data/writing", "data/shards", "data/sources"):
        assert "torch" not in set(imports_of(ROOT / f"blockwise/{name}.py"))


def words_of(path):
    """What the command in a config's first comment gives train.py: ends with the config itself."""
    launcher, _, words = path.read_text().splitlines()[0].partition(" train.py ")
    assert launcher.startswith("# torchrun") and words.split()[-1] == str(path.relative_to(ROOT))
    return words.split()


def kinds():
    """{a config's keys at the size of a test, but for names, rates and lengths: the first file that has them}"""
    other = {"out_dir", "wandb_run_name", "learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "eval_interval"}
    kinds = {}
    for path in CONFIGS:
        config = asdict(configure(TrainConfig, [*words_of(path), *TINY, *SHORT], "")[0].resolved())
        kinds.setdefault(str([item for item in config.items() if item[0] not in other | {"log_interval"}]), path)
    return kinds


@pytest.mark.parametrize("path", kinds().values(), ids=lambda p: p.name)
def test_every_kind_of_config_trains_two_steps(path, data_dir, tmp_path):
    """By the command in its first comment, at a size that fits a test; files that then differ in a rate are one."""
    words, out = words_of(path), f"--out_dir={tmp_path / 'out'}"
    assert run(*words, *TINY, *SHORT, f"--data_dir={data_dir}", out) == 0
    expected = configure(TrainConfig, words, "")[0].resolved().lr_mult
    row = metrics([out])[0]
    assert row["lr/QK"] / row["lr/Norm"] == pytest.approx(expected["QK"] / expected["Norm"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_is_blockwise_unless_it_is_an_arm(path):
    config = configure(TrainConfig, words_of(path), "")[0].resolved()
    assert config.lr_mult["QK"] == 8 or path.parent.name == "arms" or path.stem == "demo_adamw"
    assert 0 < config.warmup_iters < config.lr_decay_iters


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_every_study_has_a_plan(path, capsys):
    assert path.read_text().splitlines()[0] == f"# python compare.py {path.relative_to(ROOT)}"
    assert compare.main([str(path), "--plan"]) == 0
    assert "tokens in all" in capsys.readouterr().out


def test_the_table_of_the_papers_rows_names_files_that_exist():
    rows = [line for line in (ROOT / "config/README.md").read_text().splitlines() if line.startswith("|")]
    named = {word for row in rows for word in re.findall(r"config/[\w/]+\.py", row)}
    assert len(named) > 15 and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name):
    (path,) = (ROOT / "config").rglob(f"{name}.py")
    config = replace(configure(TrainConfig, words_of(path), "")[0].resolved(), vocab_size=50304)
    with torch.device("meta"):
        model = Transformer(ModelConfig.of(config))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(SIZES[name], abs=0.06)


@pytest.mark.parametrize("path", sorted((ROOT / "config/shapes").glob("c4_*.py")), ids=lambda p: p.name)
def test_parameter_counts_of_the_scaling_law(path):
    """Without the output layer and with T5's vocabulary, as the comment says; and 20 tokens for each of them."""
    stated = float(re.search(r"([\d.]+)M parameters", path.read_text())[1])
    config = replace(configure(TrainConfig, words_of(path), "")[0].resolved(), vocab_size=32100)
    with torch.device("meta"):
        model = Transformer(ModelConfig.of(config))
    counted = sum(p.numel() for name, p in model.named_parameters() if "lm_head" not in name) / 1e6
    assert counted == pytest.approx(stated, abs=0.06)
    tokens = config.max_iters * config.tokens_per_step
    assert tokens / 20e6 == pytest.approx(stated, rel=1e-3) and config.lr_decay_iters == config.max_iters


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_the_demo_starts_no_more_processes_than_its_step_has_parts(monkeypatch, capsys):
    count = re.search(r'-c "(import torch; .*?)"', (ROOT / "Makefile").read_text())[1]
    parts = configure(TrainConfig, [str(ROOT / "config/demo.py")], "")[0].gradient_accumulation_steps
    for gpus, expected in {0: 2, 1: 1, 2: 2, 3: 2, 8: 2}.items():
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        exec(count)
        assert int(capsys.readouterr().out) == expected and parts % expected == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_design_lists_every_module():
    """By its name, in the tables of docs/design.md; and no module that is not there."""
    listed = set(re.findall(r"`(\w+\.py)`", (ROOT / "docs/design.md").read_text().split("## Modules")[1]))
    there = {path.name for path in [*ROOT.glob("*.py"), *LEAVES, *ROOMS] if path.name != "__init__.py"}
    assert (there - listed, listed - there) == (set(), set())


def python_in(page, blocks=1):
    """The Python of a page, which has so many blocks of it."""
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(found) == blocks
    return "".join(found)


def test_the_five_lines_run():
    """On a tiny Hugging Face model, made here instead of downloaded."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny = AutoModelForCausalLM.from_config(LlamaConfig(**shape, vocab_size=64))
    snippet = python_in(ROOT / "README.md")
    made = re.sub(r"AutoModelForCausalLM\.from_pretrained\(.*?\)", "tiny", snippet)
    assert made != snippet
    names = {"tiny": tiny}
    exec(made, names)
    rates = {group["block"]: group["lr"] for group in names["optimizer"].param_groups}
    assert rates["QK"] == pytest.approx(8 * rates["Norm"])


def test_the_study_of_the_page_has_a_plan(tmp_path, capsys):
    path = tmp_path / "study.py"
    path.write_text(python_in(ROOT / "docs/comparing.md", blocks=2))
    assert compare.main([str(path), "--plan"]) == 0
    assert "24 points of each arm" in capsys.readouterr().out


def test_the_page_of_keys_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "docs/configuration.py"))
    assert generator["PAGE"].read_text() == generator["page"](), "run: python docs/configuration.py"


def test_the_page_of_keys_has_every_key():
    sections = runpy.run_path(str(ROOT / "docs/configuration.py"))["sections"]()
    assert [key for _, keys in sections for key in keys] == list(TrainConfig.__dataclass_fields__)
    assert all(keys for _, keys in sections), "a heading without a key under it"
