"""A report says what was found, what was not and why, and comes back from its file as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quaver.errors import BadInput, CorruptFile
from quaver.evaluation.metrics import METRICS
from quaver.evaluation.report import Report, System, environment, mean_system

WER = {name: METRICS[name] for name in ("wer", "dnsmos", "failures")}


def system(voice: str, errors: int, mos: float) -> System:
    rows = [
        {"index": i, "text": "a b", "hypothesis": "a", "wer": 50.0 * errors, "word_errors": errors, "words": 2,
         "dnsmos": mos, "failures": 0}
        for i in range(4)
    ]  # fmt: skip
    return System("quaver", voice, rows=rows, worst=rows[:1] if errors else []).summarised(WER)


@pytest.fixture
def report() -> Report:
    systems = [system("ann", 0, 3.0), system("bob", 1, 4.0)]
    systems.append(mean_system(systems, WER))
    return Report("tts", systems, {"seed": 1}, {"per": "no phone recogniser"}, environment(), {"asr": 1.5})


def test_the_json_comes_back_as_it_was(report: Report) -> None:
    again = Report.from_json(report.to_json())
    assert again.to_json() == report.to_json()
    assert again.markdown() == report.markdown()


def test_the_mean_is_over_all_sentences_and_keeps_no_second_copy_of_the_rows(report: Report) -> None:
    mean = report.systems[-1]
    assert mean.voice == "mean"
    assert mean.summary["wer"].value == pytest.approx(25.0)
    assert mean.summary["dnsmos"].value == pytest.approx(3.5)
    assert mean.rows == ()


def test_the_table_has_a_line_per_voice_and_says_what_is_missing(report: Report) -> None:
    text = report.markdown()
    assert "WER % ↓" in text
    assert "DNSMOS ↑" in text
    assert "| quaver / bob | 50.0 (50.0–50.0) | 0 | 4.00 |" in text
    assert "- PER: no phone recogniser" in text
    assert "bob 0: a b → a" in text


def test_files_are_written_under_one_stem(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = report.write(tmp_path / "card.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "card.md", "card.png"]
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    assert Report.from_json(paths["json"].read_text()).settings == {"seed": 1}
    assert set(report.write(tmp_path / "new" / "folder")) == {"json", "md", "png"}
    with pytest.raises(BadInput, match=r"\.json"):
        report.write(tmp_path / "card.txt")


def test_figures_that_are_not_finite_do_not_break_the_json() -> None:
    broken = Report("tts", [System("x", rows=[{"index": 0, "dnsmos": float("nan")}])])
    rows = json.loads(broken.to_json(), parse_constant=lambda name: pytest.fail(name))["systems"][0]["rows"]
    assert rows[0]["dnsmos"] is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99, "systems": []}', '{"format": 1, "systems": [{}]}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(CorruptFile, match="again"):
        Report.from_json(text)


def test_the_environment_names_machine_and_versions() -> None:
    found = environment()
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["numpy"]
    assert found["created"].endswith("+00:00")
