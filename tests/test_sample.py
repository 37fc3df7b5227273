"""Text from a checkpoint: deterministic, within the vocabulary, from the newest one that is whole."""

import json
import math
import runpy
import shutil
import sys
from types import SimpleNamespace

import pytest
import tiktoken
import torch
from conftest import ROOT, out_dir, run
from safetensors.torch import load_file, save_file

import blockwise.tokenizer
import export
import measure
import model
import sample
from blockwise import UserError, sampling
from blockwise.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from blockwise.data.text import prepare_text
from blockwise.files import GPT2
from blockwise.huggingface.load import Pretrained
from blockwise.tokenizer import BYTES, Tokenizer, read_tokenizer_json, tokenizer_named
from configurator import configure


def write(capsys, *words):
    """What sample.py prints of a run, or of other weights."""
    capsys.readouterr()
    sample.main(configure(sample.SampleConfig, ["--device=cpu", *words], "")[0])
    return capsys.readouterr().out


def export_to(folder, to):
    export.main(configure(export.ExportConfig, [f"--out_dir={folder}", f"--to={to}"], "")[0])


def test_sampling(finished, capsys, tmp_path):
    """The seed decides; a file as the prompt, with a byte order mark or without; from the newest that is whole."""
    out = f"--out_dir={out_dir(finished)}"
    words = (out, "--start=the cat", "--num_samples=2", "--max_new_tokens=40")
    first = write(capsys, *words)
    assert first.count("the cat") >= 2 and first.count("---------------") == 2
    assert write(capsys, *words) == first
    assert write(capsys, *words, "--seed=1") != first
    for mark in ("", "\ufeff"):
        (tmp_path / "prompt.txt").write_text(f"{mark}the cat", encoding="utf-8")
        assert write(capsys, *words, f"--start=FILE:{tmp_path / 'prompt.txt'}") == first
    newest_checkpoint(out_dir(finished)).write_bytes(b"")
    sample.main(sample.SampleConfig(out_dir=str(out_dir(finished)), num_samples=1, max_new_tokens=5, device="cpu"))
    assert "ckpt_00000008.pt is damaged" in capsys.readouterr().err


def test_padded_ids_are_never_sampled(small, capsys):
    """With 1,000 rows and hardly any training most draws would fall outside the 256 bytes."""
    run(*small, "--vocab_size=1000", "--max_iters=1")
    words = ("--num_samples=1", "--max_new_tokens=100", "--temperature=5", "--top_k=None")
    write(capsys, f"--out_dir={out_dir(small)}", *words)


def test_a_trained_tokenizer_travels_with_the_checkpoint(small, capsys, tmp_path):
    tokenizer = tokenizer_named("bpe:270", "the cat sat on the mat and the dog ate that hat\n" * 40)
    prepare_text(tmp_path / "data" / "cats", "the cat sat on the mat\n" * 200, tokenizer, "made up")
    words = (*small, "--dataset=cats", f"--data_dir={tmp_path / 'data'}", "--max_iters=1")
    run(*words)
    shutil.rmtree(tmp_path / "data")
    words = (f"--out_dir={out_dir(words)}", "--start=the cät ", "--num_samples=1", "--max_new_tokens=40")
    assert write(capsys, *words, "--temperature=3", "--top_k=None").startswith("the cät ")


def test_generation_ends_at_the_stop_text(finished_run, capsys):
    words = (f"--out_dir={finished_run}", "--start=the cat", "--num_samples=2", "--max_new_tokens=60", "--top_k=None")
    whole = write(capsys, *words).split("---------------\n")
    stop = whole[0][20:22]  # of the first sample
    texts = write(capsys, *words, f"--stop={stop}").split("---------------\n")
    assert texts[0] == whole[0][: whole[0].index(stop, len("the cat"))] + "\n" and texts[0] != whole[0]
    text, *_ = write(capsys, *words, "--stop=the cat").split("---------------\n")  # in the prompt it is no end
    assert len(text) > len("the cat\n")


def test_generation_ends_at_the_end_of_text():
    plain, marked = Tokenizer(BYTES), Tokenizer(BYTES | {"end_of_text": 46})
    ids = list(b"ab.cd")
    assert sample.text_until("", ids, list(b"x.y"), plain) == "x.yab.cd"
    assert sample.text_until("", ids, list(b"x.y"), marked) == "x.yab"
    assert sample.text_until("cd", iter(ids), list(b"cd"), plain) == "cdab."
    assert sample.text_until("ya", ids, list(b"x.y"), plain) == "x.yab.cd"  # half of it in the prompt
    assert sample.text_until("\xe9", "ab\xe9c".encode(), [], plain) == "ab"


@pytest.mark.parametrize("content, ends", [
    ('{"eos_token_id": 99}', {99}), ('{"eos_token_id": [99, 100]}', {99, 100}), ('{"eos_token_id": null}', set()),
    ("\ufeff{}", set()), (None, set()),
])  # fmt: skip
def test_generation_ends_where_generation_config_says(tmp_path, content, ends):
    """A chat model has two ends: of a turn and of a text."""
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content, encoding="utf-8")
    assert Pretrained.ends(SimpleNamespace(folder=tmp_path)) == ends
    text = sample.text_until("", list(b"abcd"), [], Tokenizer(BYTES | {"end_of_text": 100}), ends)
    assert text == ("ab" if ends else "abc")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_one_line_everywhere(finished, tmp_path, capsys, no_figures, value):
    path = newest_checkpoint(out_dir(finished))
    checkpoint = load_checkpoint(path)
    checkpoint["model"]["blocks.1.mlp.up_proj.weight"][3, 2] = value
    path.with_suffix(".json").unlink()
    save_checkpoint(path.parent, checkpoint, None, keep=-1)
    problem = r"blocks\.1\.mlp\.up_proj\.weight of the checkpoint of step 8 holds NaN or inf: the run has diverged"
    options = [f"--out_dir={out_dir(finished)}", "--device=cpu"]
    for command in (
        lambda: write(capsys, *options),
        lambda: export_to(out_dir(finished), tmp_path / "hf"),
        lambda: measure.main(configure(measure.SharpnessConfig, options, "")[0]),
        lambda: measure.main(configure(measure.FrequencyConfig, options, "")[0]),
        lambda: run(*finished, "--init_from=resume", "--max_iters=10"),
    ):
        with pytest.raises(UserError, match=problem):
            command()


def test_hugging_face_weights_that_are_not_finite_are_refused(small, finished_run, tmp_path, capsys):
    hf = tmp_path / "hf"
    export_to(finished_run, hf)
    tensors = load_file(hf / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][0, 0] = math.nan
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    for command in (lambda: write(capsys, f"--init_from=hf:{hf}"), lambda: run(*small, f"--init_from=hf:{hf}")):
        with pytest.raises(UserError, match=r"mlp\.c_fc\.weight has NaN or inf, expected finite"):
            command()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_temperature_near_0_is_greedy(dtype):
    logits = torch.tensor([[0.0, 30.0, -30.0]], dtype=dtype)
    assert sampling.sample(logits, 1e-300, 3, torch.Generator().manual_seed(0), 0.9).tolist() == [[1]]


def test_logits_that_are_not_finite_are_one_line():
    for temperature in (0, 1.0):
        with pytest.raises(UserError, match="the logits are NaN or inf"):
            sampling.sample(torch.tensor([[0.0, math.nan]]), temperature, None, None)


def test_end_of_text_in_a_prompt(monkeypatch):
    """As nanoGPT has it for GPT-2's tokenizer: one id."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    tiny = tiktoken.Encoding("tiny", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 259})
    monkeypatch.setattr(blockwise.tokenizer, "gpt2_ranks", lambda: tiny)
    gpt2 = Tokenizer(GPT2)
    text = "<|endoftext|>ab<|endoftext|><|endoftext|>"
    assert gpt2.encode_prompt(text) == [259, 97, 98, 259, 259] == tiny.encode(text, allowed_special="all")
    assert gpt2.encode_prompt("ab") == gpt2.encode("ab") and len(gpt2.encode(text)) == len(text)
    assert gpt2.decode(gpt2.encode_prompt(text)) == text
    own = tokenizer_named("bpe:270", "the cat sat on the mat and the dog ate that hat\n" * 40, end_of_text=True)
    assert own.encode_prompt("<|endoftext|>the") == [269, *own.encode("the")]
    assert Tokenizer(BYTES).encode_prompt("<|endoftext|>") == list(b"<|endoftext|>")


def with_bos(path, text, place, settings=None):
    """A tokenizer.json that puts <s> before a text, by its post-processor or by the settings beside it."""
    content = json.loads(text)
    bos = max(content["model"]["vocab"].values()) + 1
    content["added_tokens"].append(dict(
        id=bos, content="<s>", special=True, single_word=False, lstrip=False, rstrip=False, normalized=False
    ))  # fmt: skip
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    if place == "post_processor":
        content["post_processor"] = {
            "type": "TemplateProcessing", "pair": [special],
            "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
        }  # fmt: skip
    path.write_text(json.dumps(content))
    if settings is not None:
        path.with_name("tokenizer_config.json").write_text(json.dumps(settings))
    return bos


@pytest.mark.parametrize("place, settings, expected", [
    ("post_processor", None, True),
    ("post_processor", {"add_bos_token": False, "bos_token": "<s>"}, False),
    ("settings", {"add_bos_token": True, "bos_token": {"content": "<s>"}}, True),
    ("settings", {"bos_token": "<s>"}, False),
])  # fmt: skip
def test_the_bos_of_a_published_tokenizer(place, settings, expected, tmp_path):
    path = tmp_path / "tokenizer.json"
    bos = with_bos(path, Tokenizer(BYTES).to_json(), place, settings)
    tokenizer = Tokenizer(read_tokenizer_json(path, "published"))
    assert tokenizer.bos == ([bos] if expected else []) and tokenizer.encode("ab") == [97, 98]


def test_bos_comes_before_the_prompt_of_hugging_face_weights(small, tmp_path, capsys, monkeypatch):
    run(*small, "--max_iters=1", "--vocab_size=320")
    hf, fed = tmp_path / "hf", []
    export_to(out_dir(small), hf)
    bos = with_bos(hf / "tokenizer.json", (hf / "tokenizer.json").read_text(), "post_processor")
    monkeypatch.setattr(
        model.Transformer, "generate", lambda self, tokens, *more: fed.append(tokens.tolist()) or [torch.tensor([[98]])]
    )
    for words in ((f"--init_from=hf:{hf}",), (f"--init_from=hf:{hf}", "--bos=False"), (f"--out_dir={out_dir(small)}",)):
        assert write(capsys, "--num_samples=1", "--start=a", *words) == "ab\n---------------\n"
    assert fed == [[[bos, 97]], [[97]], [[97]]]


def test_mistakes(finished_run, tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match="no checkpoint"):
        write(capsys, f"--out_dir={tmp_path}")
    for word in ("--temperature=-1", "--top_k=0", "--num_samples=0", "--start=", "--start=FILE:no", "--device=tpu",
                 "--top_p=0", "--top_p=1.1", "--top_p=nan"):  # fmt: skip
        with pytest.raises(UserError, match=word[2:].split("=")[0] if "FILE" not in word else "cannot read no"):
            write(capsys, f"--out_dir={finished_run}", word)
    monkeypatch.setattr(sys, "argv", ["sample.py", "--out_dirr=x"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
    err = capsys.readouterr().err
    assert (stop.value.code, len(err.splitlines())) == (2, 1) and "out_dir" in err
