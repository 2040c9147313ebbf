"""Corpora: made by a teacher that is always there, resumed after a kill, read back the same from either manifest."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from quaver.app.commands.corpus import app
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile, QuaverError
from quaver.training import build
from quaver.training.build import build_corpus, import_corpus, problem, read_texts
from quaver.training.corpus import load_manifest
from quaver.training.teachers import TeacherSpec, load_teacher, parse_teacher
from quaver.tts.text import Frontend

pytest.importorskip("lhotse", reason="manifests need the [train] extra")

TEXTS = [
    "The boat was ready.",
    "She sings well, they say.",
    "Who left the door open?",
    "Bring two cups of tea.",
    "A dog ran home.",
    "It rained all night.",
    "Try the other key.",
    "Nobody knew why.",
]
THREE = 3.2 / 3600  # hours that about three of these sentences fill
SPECS = [TeacherSpec("hibari", "", THREE)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    build_corpus(out, SPECS, TEXTS, seed=5)
    return out


def audio_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "hibari").iterdir())}


def test_a_corpus_is_what_its_manifest_says(corpus: Path) -> None:
    items = load_manifest(corpus / "manifest.jsonl.gz")
    assert 2 <= len(items) <= 5
    assert sum(item.seconds for item in items) >= 3.2
    assert {path.name for path in (corpus / "hibari").iterdir()} == {item.path.name for item in items}
    for item in items:
        audio, rate = soundfile.read(item.path)
        assert (rate, len(audio)) == (24_000, round(item.seconds * 24_000))
        assert abs(np.abs(audio).max() - 0.7) < 1e-3
        (utterance,) = Frontend()(item.text)
        assert item.phones == utterance.phones  # what the teacher read is what the front end will give the model
        assert item.words == utterance.words
        assert item.text in TEXTS
        assert item.voice == "hibari"
    report = json.loads((corpus / "report.json").read_text())
    assert report["hibari"]["utterances"] == len(items)


def test_lhotse_reads_the_manifest(corpus: Path) -> None:
    from lhotse import CutSet

    cuts = CutSet.from_file(corpus / "manifest.jsonl.gz").with_recording_path_prefix(corpus)
    cut = next(iter(cuts))
    assert cut.load_audio().shape == (1, cut.num_samples)
    assert cut.supervisions[0].custom["phonemes"]


def test_the_journal_is_a_manifest_too(corpus: Path, tmp_path: Path) -> None:
    plain = tmp_path / "hibari.jsonl"
    rows = [json.loads(line) for line in (corpus / "journal" / "hibari.jsonl").read_text().splitlines()]
    plain.write_text("".join(json.dumps({**row, "path": str(corpus / row["path"])}) + "\n" for row in rows))
    assert load_manifest(plain) == load_manifest(corpus / "manifest.jsonl.gz")


def test_the_same_command_changes_nothing(corpus: Path) -> None:
    before = audio_bytes(corpus), (corpus / "journal" / "hibari.jsonl").read_bytes()
    build_corpus(corpus, SPECS, TEXTS, seed=5)
    assert (audio_bytes(corpus), (corpus / "journal" / "hibari.jsonl").read_bytes()) == before


def test_a_run_cut_off_anywhere_ends_in_the_same_corpus(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build.make_utterance

    def killed(task, out, kokoro=None):
        if task.id.endswith("1"):
            raise KeyboardInterrupt
        return made(task, out, kokoro)

    monkeypatch.setattr(build, "make_utterance", killed)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path, SPECS, TEXTS, seed=5)
    assert not (tmp_path / "manifest.jsonl.gz").exists()
    monkeypatch.undo()
    journal = tmp_path / "journal" / "hibari.jsonl"
    assert journal.read_text().count("\n") == 1
    journal.write_text(journal.read_text() + '{"id": "hibari-0000')  # the line that a kill cut off
    (tmp_path / "hibari" / ".1.part.hibari-000001.flac").write_bytes(b"half")
    build_corpus(tmp_path, SPECS, TEXTS, seed=5)
    assert audio_bytes(tmp_path) == audio_bytes(corpus)
    assert load_manifest(tmp_path / "manifest.jsonl.gz")[0].id == "hibari-000000"


def test_several_processes_make_the_same_corpus_even_after_a_kill(corpus: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, json\nfrom pathlib import Path\nfrom quaver.training.build import build_corpus\n"
        "from quaver.training.teachers import TeacherSpec\n"
        "if __name__ == '__main__':\n"
        "    build_corpus(Path(sys.argv[1]), [TeacherSpec('hibari', '', float(sys.argv[2]))], json.loads(sys.argv[3]),"
        " seed=5, jobs=2)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(script), str(out), str(THREE), json.dumps(TEXTS)]
    first = subprocess.Popen(command, start_new_session=True)
    journal = out / "journal" / "hibari.jsonl"
    until = time.monotonic() + 60
    while first.poll() is None and time.monotonic() < until and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.02)
    if first.poll() is None:
        os.kill(first.pid, signal.SIGKILL)
    first.wait()
    build_corpus(out, SPECS, TEXTS, seed=5, jobs=2)
    assert audio_bytes(out) == audio_bytes(corpus)


def test_other_settings_in_the_same_folder_are_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        build_corpus(corpus, SPECS, TEXTS, seed=6)


def test_texts_that_run_out_are_reported(tmp_path: Path) -> None:
    report = build_corpus(tmp_path, [TeacherSpec("hibari", "", 1.0)], TEXTS[:2])["hibari"]
    assert (report.complete, report.utterances) == (False, 2)


def test_what_a_teacher_chokes_on_is_counted_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_teacher", lambda name, kokoro: Broken())
    with pytest.raises(QuaverError, match=r"nothing usable.*failed: ValueError"):
        build_corpus(tmp_path, SPECS, TEXTS[:1])
    report = json.loads((tmp_path / "report.json").read_text())["hibari"]
    assert report["rejected"] == {"failed: ValueError": 1}


class Broken:
    voices = ("x",)

    def say(self, text: str, voice: str, speed: float, rng: np.random.Generator) -> tuple[np.ndarray, str | None]:
        raise ValueError(text)


def test_unusable_speech_is_named() -> None:
    dice = np.random.default_rng(0)
    second = dice.uniform(-0.5, 0.5, 24_000).astype(np.float32)
    hello = "həlˈO ðˈɛɹ."
    assert problem(second, hello) == ""
    assert problem(np.where(np.arange(24_000) == 5, np.nan, second), hello) == "not finite"
    assert problem(second[:100], hello) == "too short"
    assert problem(np.tile(second, 16), hello) == "too long"
    assert problem(second * 0, hello) == "silent"
    assert problem(np.clip(second * 100, -1, 1), hello) == "clipped"
    assert problem(np.tile(second, 9), hello) == "too slow"
    assert problem(second, hello * 6) == "too fast"
    assert problem(second, "...") == "no phonemes"
    assert problem(second, "həlˈO ы").startswith("phonemes outside")


def test_held_out_sentences_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("One two.\nThree four!\n\nthree FOUR\nFive.\n")
    (tmp_path / "held.txt").write_text("five\n")
    assert read_texts(tmp_path / "train.txt", [tmp_path / "held.txt"]) == ["One two.", "Three four!"]
    with pytest.raises(BadInput, match="excluded"):
        read_texts(tmp_path / "held.txt", [tmp_path / "held.txt"])
    with pytest.raises(MissingFile):
        read_texts(tmp_path / "nowhere.txt")


def test_existing_speech_is_imported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, (16_000, 2))
    soundfile.write(tmp_path / "in" / "a.wav", noise, 16_000)
    rows = [
        {"path": "a.wav", "text": "Hello there."},
        {"path": "a.wav", "text": "Hello there.", "voice": "b/../c", "phonemes": "həlˈO ðˈɛɹ."},
        {"path": "gone.wav", "text": "Hello there."},
    ]
    manifest = tmp_path / "in" / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reports = import_corpus(tmp_path / "out", manifest)
    items = load_manifest(tmp_path / "out" / "manifest.jsonl.gz")
    assert sorted(item.voice for item in items) == ["b____c", "in"]
    assert items[0].phones == items[1].phones
    assert [item.seconds for item in items] == [1.0, 1.0]
    assert sum(reports["in"].rejected.values()) == 1


def test_the_command_builds_and_packs(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    out, texts = str(tmp_path / "c"), str(tmp_path / "texts.txt")
    command = ["build", "--out", out, "--teacher", f"hibari={THREE:.6f}", "--texts", texts, "--speed-range", "1", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "hibari" in done.stderr
    done = CliRunner().invoke(app, ["pack", f"{out}/manifest.jsonl.gz", str(tmp_path / "p"), "--no-f0", "-q"])
    assert done.exit_code == 0, done.output
    index = [json.loads(line) for line in (tmp_path / "p" / "index.jsonl").read_text().splitlines()]
    assert [row["id"] for row in index] == [item.id for item in load_manifest(tmp_path / "c" / "manifest.jsonl.gz")]
    refused = CliRunner().invoke(app, ["build", "--out", out, "--teacher", "siri", "--texts", texts])
    assert isinstance(refused.exception, BadInput)


def test_a_manifest_still_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    row = {"path": "a.flac", "text": "A dog", "voice": "v", "seconds": 1.0, "phonemes": "ɐ dˈɔɡ"}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])
    (item,) = load_manifest(path)
    assert item.phones == ("ɐ", "d", "ˈɔ", "ɡ", ".")
    assert [(w.text, w.start, w.end) for w in item.words] == [("A", 0, 1), ("dog", 1, 4)]
    assert item.path == tmp_path / "a.flac"
    path.write_text(json.dumps(row)[:20] + "\n" + json.dumps(row) + "\n")
    with pytest.raises(CorruptFile, match="line 1"):
        load_manifest(path)
    path.write_text("{}\n")
    with pytest.raises(CorruptFile, match="line 1"):
        load_manifest(path)
    with pytest.raises(MissingFile, match="quaver corpus build"):
        load_manifest(tmp_path / "none.jsonl")


def test_a_damaged_gzip_is_no_traceback(corpus: Path, tmp_path: Path) -> None:
    whole = (corpus / "manifest.jsonl.gz").read_bytes()
    for broken in (whole[:-20], b"text", gzip.compress(b"[]\n")):
        (tmp_path / "m.jsonl.gz").write_bytes(broken)
        with pytest.raises(CorruptFile):
            load_manifest(tmp_path / "m.jsonl.gz")


def test_teachers_are_named_with_voice_and_hours() -> None:
    assert parse_teacher("kokoro:am_michael=3", 1.0) == TeacherSpec("kokoro", "am_michael", 3.0)
    assert parse_teacher("hibari", 1.5) == TeacherSpec("hibari", "", 1.5)
    assert TeacherSpec("kokoro", "am_michael", 1.0).label == "kokoro_am_michael"
    for wrong in ("siri", "hibari=", "hibari=0", "a b", ""):
        with pytest.raises(BadInput):
            parse_teacher(wrong, 1.0)


def test_a_missing_teacher_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFile, match="--kokoro-dir"):
        load_teacher("kokoro", str(tmp_path))
    monkeypatch.delenv("KOKORO_DIR", raising=False)
    with pytest.raises(MissingFile, match="KOKORO_DIR"):
        load_teacher("kokoro")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingFile, match="apt install flite"):
        load_teacher("flite")
    with pytest.raises(BadInput, match="no voice"):
        build_corpus(tmp_path / "x", [TeacherSpec("hibari", "emma", 1.0)], TEXTS)
    assert not (tmp_path / "x").exists()
