"""The runner of the benchmark suite: order, ratios, what is missing, and what is written. No test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quaver.benchmarks import report, suite
from quaver.benchmarks.report import Column, Table
from quaver.benchmarks.runner import HERE, Row, Side, Worker, WorkerFailed, run, summary
from quaver.errors import BadInput

TOY = '''
"""Toy sides: they write down when they were asked, and cost what they say."""
import sys

def toy(name, log, cost=1.0, fail_at=0):
    print("a package that prints when it is imported")
    print("and on stderr" * 5000, file=sys.stderr)
    count = [0]
    def call():
        count[0] += 1
        with open(log, "a") as file:
            file.write(name)
        if count[0] == fail_at:
            raise ValueError("the third time is one too many")
        print("and when it runs")
        return {"cpu": cost * count[0], "wall": 2 * cost * count[0], "units": 2, "first": 0.5}
    return call, {"parameters": 5_000_000, "check": [1, 2] if name != "C" else [2, 1], "read": 1e6, "flops": 1e6}

def absent():
    import a_package_that_nobody_has

def gone():
    raise FileNotFoundError("no model in /nowhere")

def broken():
    raise KeyError("a bug")

def dies():
    import os
    return (lambda: os._exit(3)), {}
'''


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return path


def sides(toy: Path, log: Path) -> tuple[Side, Side]:
    a = Side("A", f"{toy}:toy", {"name": "A", "log": str(log)})
    return a, Side("B", f"{toy}:toy", {"name": "B", "log": str(log), "cost": 3.0})


def test_sides_take_turns_and_each_round_gives_a_ratio(toy: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = run(Row("r", "t", "toys", sides(toy, log), rounds=3, warmup=2))
    assert log.read_text() == "AABB" + "ABABAB"
    a, b = found["sides"]
    # Two calls warmed up: the third, fourth and fifth count, each over two units, in milliseconds.
    assert [s["cpu"] for s in a["samples"]] == [3, 4, 5]
    assert (a["cpu"], a["wall"]) == (2000, 4000)
    assert "cpu_ratio" not in a
    assert b["cpu_ratio"] == [3, 3, 3]
    assert b["wall_ratio"] == [3, 3, 3]
    assert b["first"] == 0.5
    assert b["memory"]["peak"] > 0
    assert found["load"][1] >= 0


def test_quick_is_two_rounds_without_warm_up(toy: Path, tmp_path: Path) -> None:
    run(Row("r", "t", "toys", sides(toy, tmp_path / "log")), quick=True)
    assert (tmp_path / "log").read_text() == "ABAB"


def test_ratios_are_medians_of_pairs_not_of_medians() -> None:
    ours = [{"cpu": 1.0, "wall": 1.0}, {"cpu": 10.0, "wall": 10.0}, {"cpu": 1.0, "wall": 1.0}]
    theirs = [{"cpu": 2.0, "wall": 1.0}, {"cpu": 30.0, "wall": 1.0}, {"cpu": 4.0, "wall": 1.0}]
    assert summary(theirs, ours, 1.0)["cpu_ratio"] == [3, 2, 4]


@pytest.mark.parametrize(
    ("function", "key", "says"),
    [
        ("absent", "missing", "a_package_that_nobody_has"),
        ("gone", "missing", "no model in /nowhere"),
        ("broken", "error", "a bug"),
        ("dies", "error", "the worker has ended"),
    ],
)
def test_a_side_that_is_not_there_is_told_of_and_the_others_go_on(
    toy: Path, tmp_path: Path, function: str, key: str, says: str
) -> None:
    a, b = sides(toy, tmp_path / "log")
    told: list[str] = []
    found = run(Row("r", "t", "toys", (a, Side("X", f"{toy}:{function}"), b), rounds=2), say=told.append)
    assert says in found["sides"][1][key]
    assert "cpu" not in found["sides"][1]
    assert found["sides"][2]["cpu_ratio"][0] == 3
    assert any(says in line for line in told)
    shown = report.table(Table("t", "Toys", "ms"), [found], None)
    assert ("not here: " if key == "missing" else "failed: ") in shown


def test_a_side_that_fails_on_the_way_leaves_the_others(toy: Path, tmp_path: Path) -> None:
    a, b = sides(toy, tmp_path / "log")
    b.settings["fail_at"] = 3
    found = run(Row("r", "t", "toys", (a, b), rounds=4, warmup=1))
    assert [len(side["samples"]) for side in found["sides"]] == [4, 1]
    assert "one too many" in found["sides"][1]["error"]


def test_a_row_ends_when_its_time_is_over_but_not_before_two_rounds(toy: Path, tmp_path: Path) -> None:
    run(Row("r", "t", "toys", sides(toy, tmp_path / "log"), rounds=50, seconds=0, warmup=0))
    assert (tmp_path / "log").read_text() == "ABAB"


def test_an_environment_that_is_not_installed_says_how_to_get_it(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="make bench-peers") as caught:
        Worker(Side("P", f"{toy}:toy", peers=True), peers=tmp_path / "no-environment")
    assert caught.value.missing


def test_a_worker_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time\ndef slow():\n    return (lambda: time.sleep(60)), {}\n")
    worker = Worker(Side("S", f"{path}:slow"), limit=0.2 + 5)
    worker.limit = 0.2
    with pytest.raises(WorkerFailed, match="no answer"):
        worker.ask("run")
    worker.process.kill()
    worker.close()
    assert worker.process.returncode is not None


def test_the_protocol_is_a_line_of_json_each_way(toy: Path, tmp_path: Path) -> None:
    """Without the runner: whatever the side prints, stdout holds answers alone; the end of stdin ends the worker."""
    settings = json.dumps({"name": "A", "log": str(tmp_path / "log")})
    requests = '{"do": "run"}\n{"do": "memory"}\n'
    command = [sys.executable, str(HERE / "worker.py"), f"{toy}:toy", settings]
    done = subprocess.run(command, input=requests, capture_output=True, text=True, timeout=60, check=True)
    ready, first, memory = map(json.loads, done.stdout.splitlines())
    assert ready["ready"]["parameters"] == 5_000_000
    assert first == {"wall": 2.0, "cpu": 1.0, "units": 2, "first": 0.5}
    assert set(memory) == {"peak", "resident"}
    assert "a package that prints" in done.stderr


# -- what is written --------------------------------------------------------------------------------------------------
@pytest.fixture
def measured(toy: Path, tmp_path: Path) -> dict:
    a, b = sides(toy, tmp_path / "log")
    c = Side("C", f"{toy}:toy", {"name": "C", "log": str(tmp_path / "log"), "cost": 0.5})
    return run(Row("r", "t", "toys", (a, b, c), rounds=2, warmup=0, remark="C is lost: it is smaller."))


def test_the_table_shows_every_side_its_ratio_and_the_reason(measured: dict) -> None:
    shape = Table(
        "t", "Toys", "ms a toy", "Two toys.", columns=(Column("parameters", "M", 1e-6), Column("peak", "MB", 1e-6))
    )
    ceilings = {"read": {"1": 1e9}, "flops": 1e9}
    text = report.table(shape, [measured], ceilings)
    lines = text.splitlines()
    assert lines[0] == "Two toys."
    assert lines[2] == (
        "|  | system | M | MB | CPU ms a toy | wall | CPU, times ours | wall, times ours | of the roofline |"
    )
    assert lines[4].startswith("| toys | A | 5.0 | ")
    assert lines[4].endswith("| 750.00 | 1500.00 | 1 | 1 | 0 % |")
    assert "**3.00** (3.00–3.00) | 3.00 |" in lines[5]
    assert "**0.50**" in lines[6]
    assert "- *toys*: C is lost: it is smaller." in text
    assert "greedy tokens of C differ" in text
    assert "greedy tokens of B" not in text
    assert all(line.count("|") == lines[2].count("|") for line in lines[3:7])


def test_json_markdown_and_a_picture_are_written(
    measured: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("r", "t", "toys", ())
    monkeypatch.setattr(suite, "ROWS", {"r": row})
    monkeypatch.setattr(suite, "TABLES", {"t": Table("t", "Toys", "ms")})
    out = tmp_path / "out"
    (out / "rows").mkdir(parents=True)
    with pytest.raises(BadInput, match="no measurements"):
        suite.write(out)
    suite.keep(out / "rows" / "r.json", measured)
    described = {"cpu": "a cpu", "cores": 2, "flags": ["avx2"], "cache_mb": 32.0, "memory_gb": 8.0, "python": "3"}
    described |= {"torch": "2", "gpu": "", "commit": "abc"}
    suite.keep(out / "machine.json", {"described": described, "ceilings": None})
    page = tmp_path / "page.md"
    page.write_text("# Mine\n<!-- bench:t -->\nold\n<!-- /bench:t -->\nkept\n")
    pytest.importorskip("matplotlib")
    suite.write(out, page, tmp_path / "image.png")
    assert json.loads((out / "bench.json").read_text())["rows"][0]["sides"][1]["name"] == "B"
    assert "## Toys" in (out / "bench.md").read_text()
    assert (out / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" == (tmp_path / "image.png").read_bytes()[:8]
    text = page.read_text()
    assert text.startswith("# Mine\n<!-- bench:t -->\n| ")
    assert text.endswith("<!-- /bench:t -->\nkept\n")
    assert "old" not in text


def test_only_what_stands_between_markers_is_replaced() -> None:
    page = "a\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nb `<!-- other -->`\n<!-- bench:y -->\n<!-- /bench:y -->\nc\n"
    once = report.update(page, {"x": "new\n\n", "z": "has no markers"})
    assert once == page.replace("old", "new")
    assert report.update(once, {"x": "new"}) == once
    assert report.names(page) == ["x", "y"]


@pytest.mark.parametrize("page", ["<!-- bench:x -->\n", "<!-- /bench:x -->\n<!-- bench:x -->", "<!-- bench:x -->" * 2])
def test_markers_out_of_order_are_refused(page: str) -> None:
    with pytest.raises(BadInput, match="bench:x"):
        report.update(page, {"x": "new"})


def test_rows_are_chosen_by_name_pattern_or_table() -> None:
    rows = [Row("lm-5M", "lm", "", ()), Row("lm-20M", "lm", "", ()), Row("codec", "codec", "", ())]
    assert [r.name for r in suite.choose(["lm"], rows)] == ["lm-5M", "lm-20M"]
    assert [r.name for r in suite.choose(["*-5M", "codec"], rows)] == ["lm-5M", "codec"]
    assert suite.choose([], rows) == rows
    with pytest.raises(BadInput, match="no row 'mars'"):
        suite.choose(["mars"], rows)


def test_every_row_has_a_table_and_every_side_its_function() -> None:
    import ast

    from quaver.benchmarks.rows import ROWS, TABLES

    functions: dict[str, set[str]] = {}
    for row in ROWS.values():
        assert row.table in TABLES, row.name
        assert row.sides, row.name
        assert row.sides[0].name.startswith("quaver"), row.name
        for side in row.sides:
            file, _, function = side.target.rpartition(":")
            if file not in functions:
                tree = ast.parse((HERE / "sides" / file).read_text())
                functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function in functions[file], f"{row.name}: {side.target}"
            json.dumps(side.settings)
