"""`run_tts` from the file of sentences to the report. Its voices are sine tones: carriers of timing, not of words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from quaver.errors import BadInput, MissingExtra, MissingFile
from quaver.evaluation import metrics as metrics_module
from quaver.evaluation.commands import run_tts
from quaver.evaluation.judges import Judges
from quaver.evaluation.metrics import METRICS, Sample
from quaver.evaluation.scoring import score
from quaver.evaluation.speech import length_scaling
from quaver.evaluation.voices import StreamingVoice

TIMING = ["audio_seconds", "rtf", "cpu_rtf", "first_audio", "first_share"]


@dataclass
class Chunk:
    samples: np.ndarray


class Tones:
    """The interface of tts.synthesizer.Synthesizer: 0.1 s of a sine per character, in chunks of one word."""

    sample_rate = 24_000
    voices = ("low", "high")

    def __init__(self, work: float = 0.002, growing: bool = False) -> None:
        self.work = work
        self.growing = growing
        self.seeds: list[int] = []

    def stream(self, text: str, *, voice: str | None = None, seed: int = 0) -> Iterator[Chunk]:
        if "?" in text:
            raise BadInput("no questions")
        self.seeds.append(seed)
        yield Chunk(np.zeros(0, np.float32))  # a first chunk without samples is not the first audio
        pitch = {"low": 110.0, "high": 220.0}[voice or "low"]
        for position, word in enumerate(text.split()):
            self._burn(self.work * (position + 1 if self.growing else 1))
            time_axis = np.arange(2400 * len(word)) / self.sample_rate
            yield Chunk((0.3 * np.sin(2 * np.pi * pitch * time_axis)).astype(np.float32))

    @staticmethod
    def _burn(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("one two three four\n\n five six seven eight \nnine ten eleven twelve\n")
    return path


def test_every_voice_gets_a_row_and_all_of_them_a_mean(texts: Path, tmp_path: Path) -> None:
    model = Tones()
    report = run_tts(texts, model, metrics=TIMING, seed=7, out=tmp_path / "r", audio_dir=tmp_path / "wavs")
    assert [system.voice for system in report.systems] == ["low", "high", "mean"]
    low = report.systems[0].summary
    assert low["audio_seconds"].value == pytest.approx(0.1 * (15 + 17 + 19), abs=0.01)
    assert low["cpu_rtf"].value == pytest.approx(4 * 3 * 0.002 / 5.1, rel=0.7)
    assert 0 < low["first_share"].value < 90
    assert low["first_audio"].value >= 2.0  # the work of the first word, not the empty chunk before it
    assert (tmp_path / "r" / "eval-tts.json").exists()
    assert [p.name for p in sorted((tmp_path / "wavs" / "low").iterdir())] == ["000.wav", "001.wav", "002.wav"]
    assert model.seeds[:4] == [7, 7, 8, 9]  # one sentence to warm up, then seed + index


def test_kept_recordings_can_be_judged_again(texts: Path, tmp_path: Path) -> None:
    run_tts(texts, Tones(), ["high"], metrics=["audio_seconds"], audio_dir=tmp_path)
    report = run_tts(texts, None, metrics=["audio_seconds"], wav_dir=tmp_path / "high", limit=2)
    assert report.systems[0].name == "high"
    assert report.systems[0].summary["audio_seconds"].value == pytest.approx(3.2, abs=0.01)
    (tmp_path / "high" / "001.wav").unlink()
    with pytest.raises(MissingFile, match="sentence 1"):
        run_tts(texts, None, metrics=["audio_seconds"], wav_dir=tmp_path / "high")


def test_a_sentence_that_the_voice_refuses_does_not_end_the_run(texts: Path) -> None:
    texts.write_text("one two\nreally?\nthree four\n")
    rows = run_tts(texts, Tones(), ["low"], metrics=["audio_seconds"]).systems[0].rows
    assert [row["audio_seconds"] > 0 for row in rows] == [True, False, True]
    assert rows[1]["refused"] == "no questions"


def test_silence_from_a_voice_loses_all_words_without_a_recogniser_being_asked() -> None:
    sample = Sample(np.zeros(0, np.float32), 24_000, "three words here")
    judges = Judges("/nowhere")
    system = score("x", [({"index": 0, "text": "three words here"}, sample)], {"wer": METRICS["wer"],
                   "failures": METRICS["failures"]}, judges)  # fmt: skip
    assert system.summary["wer"].value == 100
    assert system.rows[0]["failed"] == ["cut"]


def test_cost_that_grows_with_length_is_seen() -> None:
    sentences = ["one two three four five"] * 3
    seconds = [2.0] * 3
    flat = length_scaling(StreamingVoice(Tones(), "t", "low"), sentences, seconds, repeats=2)
    growing = length_scaling(StreamingVoice(Tones(0.0005, growing=True), "t", "low"), sentences, seconds, repeats=1)
    assert flat is not None
    assert growing is not None
    assert flat["long_seconds"] > 5 * flat["short_seconds"] * 0.9
    assert flat["ratio"] == pytest.approx(1.0, abs=0.35)
    assert growing["ratio"] > 2.0


def test_a_package_that_is_missing_is_a_note_unless_it_was_asked_for(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "installed", lambda package: False)
    report = run_tts(texts, Tones(), ["low"], phones=None)
    assert "not installed: pip install 'quaver[eval]'" in report.notes["dnsmos"]
    assert "not installed: pip install 'quaver[eval]'" in report.markdown()
    assert set(TIMING) <= report.systems[0].summary.keys()
    with pytest.raises(MissingExtra, match=r"quaver\[eval\]"):
        run_tts(texts, Tones(), metrics=["distillmos"])


def test_without_a_recogniser_words_are_left_out_unless_asked_for(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "installed", lambda package: package == "jiwer")
    assert "--asr" in run_tts(texts, Tones(), ["low"], phones=None).notes["wer"]
    with pytest.raises(BadInput, match="--asr"):
        run_tts(texts, Tones(), metrics=["wer"])


def test_a_named_recogniser_that_is_not_there_is_an_error(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    with pytest.raises(MissingFile, match=r"model\.bin"):
        run_tts(texts, Tones(), asr=str(tmp_path))


def test_phones_are_compared_through_the_hook(texts: Path) -> None:
    class Deaf:
        def transcribe(self, audio: np.ndarray) -> list[str]:
            return ["w", "ʌ", "n"]

    texts.write_text("one\none two\n")
    report = run_tts(texts, Tones(), ["low"], metrics=["per"], phones=Deaf())
    assert [row["phone_errors"] for row in report.systems[0].rows] == [0, 2]
    assert report.systems[0].summary["per"].value == pytest.approx(100 * 2 / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voices": ["nobody"]}, "no voice nobody"),
        ({"metrics": ["beauty"]}, "no metric beauty"),
        ({"metrics": ["pesq"]}, "cannot be measured"),
        ({"metrics": ["similarity"]}, "--speaker-refs"),
        ({"model": None}, "nothing to judge"),
        ({"limit": 0}, "--limit"),
    ],
)
def test_wrong_questions_are_refused(texts: Path, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"model": Tones(), **change}
    with pytest.raises(BadInput, match=message):
        run_tts(texts, **arguments)  # type: ignore[arg-type]


def test_a_file_without_sentences_is_refused(texts: Path, tmp_path: Path) -> None:
    texts.write_text("\n \n")
    with pytest.raises(BadInput, match="no sentences"):
        run_tts(texts, Tones())
    with pytest.raises(MissingFile, match="--texts"):
        run_tts(tmp_path / "none.txt", Tones())
