"""Texts by a tokenizer file: sealed, trained on, opened, written, and never mixed with another."""

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from cli.test_text import CFG, WORD
from cli.world import World, call
from plinius.data.sealed_dataset import SealedDataset
from plinius.key_file import load_key

TOKENS = 270


def trained_tokenizer(path: Path, text: str, size: int = TOKENS) -> Path:
    """A byte-level BPE tokenizer of a few merges."""
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([text], trainer)
    made.enable_truncation(5)  # which must not cut a text
    made.save(str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two texts, one of them with letters that are no ASCII."""
    (tmp_path / "texts" / "more").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text(WORD * 30)
    (tmp_path / "texts" / "more" / "b.txt").write_text("Größe µ 中. " + WORD * 30)
    (tmp_path / "texts" / "notes.md").write_text("not part of it")
    return tmp_path / "texts"


def test_a_text_by_a_tokenizer_is_learned_written_and_given_back(
    world: World, folder: Path, tmp_path: Path
) -> None:
    """Sealed from a folder, opened as the same text; another tokenizer and bytes are refused."""
    tokenizer = trained_tokenizer(tmp_path / "tokenizer.json", WORD * 9)
    count = Library.from_file(str(tokenizer)).get_vocab_size()
    out, key = tmp_path / "text.sealed", ["--key", world.key]
    source = ["--text", folder, "--sequence", 8]
    told = call("seal", *key, "-o", out, *source, "--tokenizer", tokenizer)
    assert f"time_steps=8 and inputs={count} in the cfg" in told.stderr, told.stderr
    assert "warning" not in told.stderr
    sealed = SealedDataset.from_file(out, load_key(world.key))
    assert sealed.header.sample.dtype == "<u2"
    assert sealed.about["text"]["tokens"] == count

    opened = tmp_path / "opened.txt"
    assert call("open", out, *key, "-o", opened).code == 0
    whole = (folder / "a.txt").read_bytes() + (folder / "more" / "b.txt").read_bytes()
    assert whole.startswith(opened.read_bytes())
    assert len(opened.read_bytes()) > len(whole) - 60

    cfg = tmp_path / "net.cfg"
    text = CFG % (0.5, "gru", "tanh=1")
    cfg.write_text(text.replace("256", str(count)).replace("steps=16", "steps=8"))
    using = ["--region", tmp_path / "region", *key]
    trained = call("train", cfg, "--data", out, *using, "--iterations", 40, "--threads", 1)
    assert trained.code == 0, trained.stderr
    asked = ["--begin", WORD, "--length", 12, "--temperature", 0.2]
    written = call("generate", cfg, *using, *asked)
    assert written.code == 0, written.stderr
    assert WORD in (written.stdout.removeprefix(WORD) + WORD)
    assert "open" in written.stdout.removeprefix(WORD)

    like, second = tmp_path / "like.sealed", tmp_path / "second.json"
    assert call("seal", *key, "-o", like, "--text", folder / "a.txt", "--like", out).code == 0
    assert call("test", cfg, "--data", like, *using).code == 0
    trained_tokenizer(second, "go and seal. " * 9)
    of_bytes, other = tmp_path / "bytes.sealed", tmp_path / "other.sealed"
    for path, more in ((of_bytes, []), (other, ["--tokenizer", second])):
        assert call("seal", *key, "-o", path, *source, *more).code == 0
        refused = call("test", cfg, "--data", path, *using)
        assert refused.code == 1 and "made by another tokenizer" in refused.stderr
        watched = ["--validate", path, "--iterations", 41]
        refused = call("train", cfg, "--data", out, *using, *watched)
        assert refused.code == 1 and "made by another tokenizer" in refused.stderr
    refused = call("generate", cfg, *using, "--tokenizer", second)
    assert refused.code == 1 and "Give that tokenizer" in refused.stderr
    refused = call(
        "seal", *key, "-o", tmp_path / "x", *source, "--like", out, "--tokenizer", second
    )
    assert refused.code == 1 and "are those of another tokenizer" in refused.stderr
    refused = call(
        "seal", *key, "-o", tmp_path / "x", *source, "--like", of_bytes, "--tokenizer", second
    )
    assert refused.code == 1 and "are bytes, not those of" in refused.stderr


def test_a_long_tokenizer_is_asked_for(world: World, folder: Path, tmp_path: Path) -> None:
    """Above 512 KiB only its digest is sealed, and what needs the file says so."""
    tokenizer = trained_tokenizer(tmp_path / "tokenizer.json", WORD)
    long = tmp_path / "long.json"
    long.write_text(tokenizer.read_text() + " " * (600 << 10))
    out, opened = tmp_path / "t.sealed", tmp_path / "t.txt"
    key = ["--key", world.key]
    sealed = call("seal", *key, "-o", out, "--text", folder, "--tokenizer", long)
    assert sealed.code == 0, sealed.stderr
    refused = call("open", out, *key, "-o", opened)
    assert refused.code == 1 and "Give its file with --tokenizer (SHA-256" in refused.stderr
    assert call("open", out, *key, "-o", opened, "--tokenizer", tokenizer).code == 1
    assert call("open", out, *key, "-o", opened, "--tokenizer", long).code == 0
    assert opened.read_text().startswith(WORD)


def test_parts_of_a_text_follow_each_other(world: World, tmp_path: Path) -> None:
    """The training part is the beginning and the test part the end; a seed is refused."""
    text = tmp_path / "numbers.txt"
    text.write_text("".join(f"{number} " for number in range(400)))
    seal = ["seal", "--key", world.key, "-o", tmp_path / "n.sealed", "--text", text]
    refused = call(*seal, "--split", "0.8,0.2", "--seed", 1)
    assert refused.code == 2 and "its parts follow each other" in refused.stderr
    assert call(*seal, "--sequence", 10, "--split", "0.8,0.2").code == 0
    for part in ("train", "test"):
        shown = call(
            "open",
            tmp_path / f"n.{part}.sealed",
            "--key",
            world.key,
            "-o",
            f"{tmp_path}/{part}.txt",
        )
        assert shown.code == 0, shown.stderr
    begin, end = ((tmp_path / f"{part}.txt").read_text() for part in ("train", "test"))
    assert text.read_text().startswith(begin)
    assert end in text.read_text()[len(begin) - 1 :]


def test_a_tokenizer_that_loses_text_is_told(world: World, folder: Path, tmp_path: Path) -> None:
    """A word that it does not know is a warning, not silence."""
    made = Library(models.WordLevel({"seal": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    told = call(
        "seal", "--key", world.key, "-o", tmp_path / "w", "--text", folder,
        "--sequence", 4, "--tokenizer", tmp_path / "words.json",
    )  # fmt: skip
    assert told.code == 0
    assert "warning: the tokens do not give back just this text" in told.stderr


def test_bad_tokenizers_and_texts_are_refused(
    world: World, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its sentence, and no traceback."""
    good = json.loads(trained_tokenizer(tmp_path / "good.json", WORD).read_text())
    empty = good | {"model": good["model"] | {"vocab": {}, "merges": []}}
    holes = good | {"model": good["model"] | {"merges": [["a", "nowhere"]]}}
    files = {
        "is not valid": [b"", b"{}", b"\xff", b"[1]", b'{"model": 3}', json.dumps(holes).encode()],
        "has no tokens": [json.dumps(empty | {"added_tokens": []}).encode()],
    }
    bad, seal = tmp_path / "bad.json", ["seal", "--key", world.key, "-o", tmp_path / "x"]
    for sentence, contents in files.items():
        for content in contents:
            bad.write_bytes(content)
            refused = call(*seal, "--text", folder, "--tokenizer", bad)
            assert refused.code == 1 and sentence in refused.stderr, (content, refused.stderr)
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # an import of it fails
    refused = call(*seal, "--text", folder, "--tokenizer", tmp_path / "good.json")
    assert refused.code == 1 and "pip install 'plinius[text]'" in refused.stderr
    monkeypatch.undo()
    (folder / "a.txt").write_bytes(b"gr\xfcn")
    refused = call(*seal, "--text", folder, "--tokenizer", tmp_path / "good.json")
    assert refused.code == 1 and "is not UTF-8 at byte 2" in refused.stderr
    (tmp_path / "none").mkdir()
    refused = call(*seal, "--text", tmp_path / "none")
    assert refused.code == 1 and "holds no .txt file" in refused.stderr
    refused = call("open", world.data, "--key", world.key, "-o", tmp_path / "x.txt")
    assert refused.code == 1 and "holds no text" in refused.stderr
    refused = call(*seal, "--text", folder, "--like", world.data)
    assert refused.code == 1 and "holds no text" in refused.stderr
