"""The command, the peers' environment, and one real row for a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quaver.app.commands import bench
from quaver.benchmarks import peers, suite
from quaver.benchmarks.runner import ROOT, Row, Side, run
from quaver.errors import BadInput


@pytest.mark.parametrize("gone", ["the folder", "its rows"])
def test_the_command_needs_a_checkout(
    gone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An installed wheel has no benchmarks: one line that says what to do."""
    from quaver.app.cli import main

    def find(name: str) -> None:
        assert name == "quaver.benchmarks.rows"
        if gone == "the folder":
            raise ModuleNotFoundError("No module named 'quaver.benchmarks'")

    monkeypatch.setattr(bench.importlib.util, "find_spec", find)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--list"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("quaver: error: the benchmarks are not part of the installed package")
    assert "pip install -e ." in said
    assert said.count("\n") == 1


def test_the_command_hands_its_words_to_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    from quaver.app.cli import main

    assert bench._here()
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--list", "lm"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "lm-20M" in shown
    assert "codec-mimi" not in shown
    with pytest.raises(SystemExit) as ended:
        main(["bench", "no-such-row"])
    assert ended.value.code == 2
    assert "no row 'no-such-row'" in capsys.readouterr().err


def test_the_peers_environment_sees_our_packages_after_its_own(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "peers", tmp_path / "ours"
    for folder in (theirs, ours):
        (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    peers.show(theirs, ours)
    lines = (peers.packages_of(theirs) / "quaver-environment.pth").read_text().split()
    assert lines == [str(peers.packages_of(ours)), str(ours / "src")]


def test_the_dearest_imports_are_told_from_the_row_that_has_them() -> None:
    row = {"sides": [{"info": {"imports": [["torch", 500.0], ["scipy.fft", 1.4]]}}, {"name": "x"}]}
    assert suite.imports([row])["imports"].splitlines()[2:] == ["| `torch` | 500 |", "| `scipy.fft` | 1 |"]
    assert suite.imports([{"sides": [{}]}]) == {}


def test_a_page_of_the_project_has_its_markers_in_order() -> None:
    from quaver.benchmarks import report
    from quaver.benchmarks.rows import TABLES

    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    names = report.names(page)
    assert set(names) <= {"machine", "sizes", "imports", "gpu", *TABLES}
    assert set(TABLES) <= set(names), "every table has its place on the page"
    assert report.update(page, dict.fromkeys(names, "x")).count("\nx\n") == len(names)


def test_rows_of_another_device_are_those_whose_sides_can_run_there() -> None:
    from quaver.benchmarks.rows import ROWS, on_device

    rows = {row.name: row for row in on_device(list(ROWS.values()), "cuda")}
    assert {"lm-20M", "prefill-120M", "codec-mimi", "stream-mimi"} <= set(rows)
    assert not {"start", "speech", "slots"} & set(rows)
    assert [side.name for side in rows["lm-20M"].sides] == [
        "quaver, bfloat16",
        "transformers, static cache, bfloat16",
        "transformers, dynamic cache, bfloat16",
    ]
    for row in rows.values():
        assert all(side.settings["device"] == "cuda" for side in row.sides)


def test_a_machine_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    from quaver.benchmarks.__main__ import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["lm-5M", "--device", "cuda", "--out", str(tmp_path / "x")]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert main(["lm-5M", "--device", "tpu"]) == 2
    assert "cpu or cuda" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_part_of_another_device_is_written_between_its_markers(tmp_path: Path) -> None:
    out, page = tmp_path / "bench-cuda", tmp_path / "page.md"
    (out / "rows").mkdir(parents=True)
    page.write_text("a\n<!-- bench:gpu -->\nold\n<!-- /bench:gpu -->\nb\n")
    with pytest.raises(BadInput, match="no measurements"):
        suite.write_device(out, page)
    described = {"cpu": "x", "cores": 2, "flags": [], "cache_mb": 1, "memory_gb": 1, "gpu": "One GPU", "python": "3"}
    suite.keep(out / "machine.json", {"described": described | {"torch": "2", "commit": "c"}, "ceilings": {}})
    side = {"name": "quaver, bfloat16", "cpu": 1.0, "wall": 2.0, "rounds": 2, "info": {"read": 1.0, "flops": 1.0}}
    row = {"name": "lm-5M", "table": "lm", "title": "5 M", "remark": "", "scale": 1000, "load": [0.1], "sides": [side]}
    suite.keep(out / "rows" / "lm-5M.json", row)
    suite.write_device(out, page)
    text = page.read_text()
    assert "One GPU" in text
    assert "| 5 M | quaver, bfloat16 |" in text
    assert "roofline" not in text
    assert "old" not in text


@pytest.mark.long
def test_our_language_model_says_what_that_of_transformers_says() -> None:
    """A tiny network through the real sides: same weights, same greedy tokens, with and without a recording."""
    work = {"size": "tiny", "prompt": 8, "new": 8}
    sides = (
        Side("quaver", "language_model.py:ours", work),
        Side("quaver, plain", "language_model.py:ours", work | {"recorded": False}),
        Side("loop", "language_model.py:spoken", work),
        Side("static", "language_model.py:transformers", work),
        Side("dynamic", "language_model.py:transformers", work | {"cache": "dynamic"}),
    )
    found = run(Row("x", "lm", "tiny", sides), quick=True)
    assert [s.get("error", s.get("missing")) for s in found["sides"]] == [None] * 5
    checks = [s["info"]["check"] for s in found["sides"] if "check" in s["info"]]
    assert len(checks) == 4
    assert all(check == checks[0] for check in checks)
    json.dumps(found)
