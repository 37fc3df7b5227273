"""Text from a checkpoint: deterministic, within the vocabulary, from the newest one that is whole."""

import shutil

import pytest
from conftest import finish, out_dir, run, start

import sample
from blockwise import UserError
from blockwise.data.text import prepare_text
from blockwise.tokenizer import tokenizer_named
from configurator import configure


def write(small, *words):
    config, _, _ = configure(sample.SampleConfig, [f"--out_dir={out_dir(small)}", "--device=cpu", *words], "")
    sample.main(config)


def test_sampling(small, capsys, tmp_path):
    run(*small)
    words = ("--start=the cat", "--num_samples=2", "--max_new_tokens=40")
    capsys.readouterr()
    write(small, *words)
    first = capsys.readouterr().out
    assert first.count("the cat") >= 2 and first.count("---------------") == 2
    write(small, *words)
    assert capsys.readouterr().out == first
    write(small, *words, "--seed=1")
    assert capsys.readouterr().out != first
    (tmp_path / "prompt.txt").write_text("the cat")
    write(small, f"--start=FILE:{tmp_path / 'prompt.txt'}", *words[1:])
    assert capsys.readouterr().out == first


def test_padded_ids_are_never_sampled(small, capsys):
    """With 1,000 rows and hardly any training most draws would fall outside the 256 bytes."""
    run(*small, "--vocab_size=1000", "--max_iters=1")
    write(small, "--num_samples=1", "--max_new_tokens=100", "--temperature=5", "--top_k=None")


def test_works_without_the_data_and_with_a_damaged_newest(small, capsys):
    run(*small)
    (out_dir(small) / "ckpt_00000008.pt").write_bytes(b"")
    write(small, "--num_samples=1", "--max_new_tokens=5")
    assert "ckpt_00000008.pt is damaged" in capsys.readouterr().err


def test_a_trained_tokenizer_travels_with_the_checkpoint(small, capsys, tmp_path):
    tokenizer = tokenizer_named("bpe:270", "the cat sat on the mat and the dog ate that hat\n" * 40)
    prepare_text(tmp_path / "data" / "cats", "the cat sat on the mat\n" * 200, tokenizer, "made up")
    words = (*small, "--dataset=cats", f"--data_dir={tmp_path / 'data'}", "--max_iters=1")
    run(*words)
    shutil.rmtree(tmp_path / "data")
    capsys.readouterr()
    write(words, "--start=the cät ", "--num_samples=1", "--max_new_tokens=40", "--temperature=3", "--top_k=None")
    assert capsys.readouterr().out.startswith("the cät ")


def test_mistakes(small, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        write(small)
    run(*small, "--max_iters=1")
    for word in ("--temperature=-1", "--top_k=0", "--num_samples=0", "--start=", "--start=FILE:no", "--device=tpu"):
        with pytest.raises(UserError):
            write(small, word)
    status, _, err = finish(start("--out_dirr=x", script="sample.py"))
    assert (status, len(err.splitlines())) == (2, 1) and "out_dir" in err
