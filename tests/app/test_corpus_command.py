"""`quaver corpus pack` and the commands that add tracks; `quaver export`; what they say about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.training import tracks
from quaver.training.pack import Pack
from quaver.training.tasks.ctc import ctc_symbols

from .conftest import Run, assert_one_line

SPEECH = [("A dog.", "ɐ dˈɔɡ."), ("No.", "nˈO."), ("Yes!", "jˈɛs!")]


@pytest.fixture(scope="session")
def tiny_semantic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real recogniser with few, random weights."""
    config: dict[str, Any] = {"width": 16, "hidden": 16, "low_blocks": 1, "middle_blocks": 1, "upper_blocks": 1}
    config |= {"symbols": ctc_symbols()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SemanticTokenizer(SemanticConfig.model_validate(config))
    folder = tmp_path_factory.mktemp("models") / "semantic"
    folder.mkdir()
    save_file(model.state_dict(), str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"kind": "semantic", **config}))
    return folder


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A plain manifest of three half seconds by two voices, the last without a text."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number, (text, phonemes) in enumerate(SPEECH):
        path = tmp_path / "speech" / f"v{number % 2}" / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(12_000) / 24_000
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 150 * time) + 0.01 * rng.standard_normal(12_000), 24_000)
        row = {"path": f"v{number % 2}/{number}.flac", "voice": f"v{number % 2}", "seconds": 0.5}
        rows.append(row | ({"text": text, "phonemes": phonemes} if number < 2 else {}))
    manifest = tmp_path / "speech" / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def lengths(pack: str, track: str, dtype: Any, width: int = 1) -> list[int]:
    return np.diff(Pack(Path(pack)).track(track, dtype, width)[1]).tolist()


def test_a_folder_of_audio_becomes_a_pack_without_texts(run: Run, speech: Path) -> None:
    result = run("corpus", "pack", speech.parent, "p")
    assert result.code == 0, result.err
    assert "3 utterances" in result.err
    entries = Pack(Path("p")).entries
    assert [(e.id, e.voice, e.text, e.phones) for e in entries] == [
        ("v0/0", "v0", "", ()),
        ("v0/2", "v0", "", ()),
        ("v1/1", "v1", "", ()),
    ]
    assert [e.samples for e in entries] == [12_000] * 3
    assert lengths("p", "f0.f16", np.float16) == [50] * 3
    f0 = Pack(Path("p")).track("f0.f16", np.float16)[0]
    assert float(np.median(f0)) == pytest.approx(150, abs=2)


def test_rows_without_text_are_taken_only_when_asked_for(run: Run, speech: Path) -> None:
    assert_one_line(run("corpus", "pack", speech, "p", "-q"), "line 3")
    assert not Path("p").exists()
    assert run("corpus", "pack", speech, "p", "-q", "--no-f0", "--textless").code == 0
    assert [len(e.phones) for e in Pack(Path("p")).entries] == [5, 3, 0]
    assert not Path("p/f0.f16").exists()


def test_voices_and_hours_choose_what_is_packed(run: Run, speech: Path) -> None:
    folder = speech.parent
    assert run("corpus", "pack", folder, "p", "-q", "--no-f0", "--voice", "v1").code == 0
    assert [e.id for e in Pack(Path("p")).entries] == ["v1/1"]
    assert run("corpus", "pack", folder, "q", "-q", "--no-f0", "--hours", 0.6 / 3600).code == 0
    assert [e.id for e in Pack(Path("q")).entries] == ["v0/0", "v0/2"]
    assert_one_line(run("corpus", "pack", folder, "r", "--voice", "emma"), "emma", "v0, v1")
    Path("empty").mkdir()
    assert_one_line(run("corpus", "pack", "empty", "r"), "nothing to pack")


def test_audio_that_is_missing_or_damaged_is_named(run: Run, speech: Path) -> None:
    (speech.parent / "v0" / "2.flac").write_bytes(b"fLaC nonsense")
    assert_one_line(run("corpus", "pack", speech.parent, "p", "-q"), "2.flac")
    assert_one_line(run("corpus", "pack", speech, "p", "-q", "--textless"), "2.flac")
    (speech.parent / "v0" / "2.flac").unlink()
    assert_one_line(run("corpus", "pack", speech, "p", "-q", "--textless"), "2.flac", "not there")
    assert not Path("p/index.jsonl").exists()


def test_alignment_and_codes_are_added(run: Run, speech: Path, tiny_semantic: Path, tiny_codec: Path) -> None:
    run("corpus", "pack", speech, "p", "-q", "--no-f0", "--textless")
    assert run("corpus", "align", "p", "--model", tiny_semantic).code == 0
    assert lengths("p", "align.i16", np.int16) == [6, 4, 0]  # ^ and each phone; speech without a text has none
    result = run("corpus", "codes", "p", "--codec", tiny_codec)
    assert result.code == 0, result.err
    assert "codes p" in result.err
    assert lengths("p", "codes.tiny.u16", np.uint16, 4) == [13] * 3  # 12.5 frames of audio
    assert run("corpus", "codes", "p", "--codec", tiny_semantic, "-q").code == 0  # a tokenizer's codes are a track too
    assert lengths("p", f"codes.{tiny_semantic.name}.u16", np.uint16, 1) == [13] * 3
    assert lengths("p", "codes.tiny.u16", np.uint16, 4) == [13] * 3


def test_any_number_of_processes_makes_the_same_track(
    run: Run, speech: Path, tiny_codec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("corpus", "pack", speech.parent, "p", "-q", "--no-f0")
    assert run("corpus", "codes", "p", "--codec", tiny_codec, "-q").code == 0
    alone = Path("p/codes.tiny.u16").read_bytes()
    Path("p/codes.tiny.u16").unlink()
    monkeypatch.setattr(tracks, "RANGE", 2)
    result = run("corpus", "codes", "p", "--codec", tiny_codec, "--jobs", 2)
    assert result.code == 0, result.err
    assert Path("p/codes.tiny.u16").read_bytes() == alone


def test_the_durations_of_a_teacher_are_added_from_its_manifest(run: Run, tiny_semantic: Path) -> None:
    Path("texts.txt").write_text("Hello there.\nA dog ran home.\n")
    hours = 2 / 3600
    build = ["corpus", "build", "--out", "c", "--teacher", f"hibari={hours:.5f}", "--texts", "texts.txt", "-q"]
    result = run(*build)
    assert result.code == 0, result.err
    run("corpus", "pack", "c/manifest.jsonl.gz", "p", "-q", "--no-f0")
    result = run("corpus", "durations", "p", "--manifest", "c/manifest.jsonl.gz")
    assert result.code == 0, result.err
    pack = Pack(Path("p"))
    assert lengths("p", "align.teacher.i16", np.int16) == [len(e.phones) + 1 for e in pack.entries]
    starts = pack.track("align.teacher.i16", np.int16)[0][:, 0]
    assert run("corpus", "align", "p", "--model", tiny_semantic).code == 0
    assert Path("p/align.i16").read_bytes() == Path("p/align.teacher.i16").read_bytes()  # known times are taken as such
    assert starts.max() <= max(e.seconds for e in pack.entries) * 50
    Path("other.jsonl").write_text('{"id": "x", "path": "x.wav"}\n')
    assert_one_line(run("corpus", "durations", "p", "-m", "other.jsonl"), "packed from")


@pytest.mark.parametrize("command", [("f0",), ("align", "-m", "x"), ("codes", "-c", "x")])
def test_a_folder_that_is_no_pack_is_said(run: Run, command: tuple[str, ...]) -> None:
    Path("p").mkdir()
    assert_one_line(run("corpus", command[0], "p", *command[1:]), "quaver corpus pack")


def test_a_run_is_exported_and_says_its_size(run: Run, tiny_codec: Path) -> None:
    result = run("export", tiny_codec, "m", "--inference-only")
    assert result.code == 0, result.err
    assert "M parameters" in result.err
    assert sorted(p.name for p in Path("m").iterdir()) == ["card.json", "config.json", "model.safetensors"]
    assert_one_line(run("export", tiny_codec, "m", "--weights", "int4"), "int8")
    assert_one_line(run("export", "nowhere", "m"), "quaver train")
