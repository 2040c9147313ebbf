"""Reading tables: every format, and every way in which a row can be bad without stopping the others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quaver.app.batch.rows import MAX_TEXT, Refused, Row, read_rows
from quaver.errors import BadInput, CorruptFile, MissingFile

pytestmark = pytest.mark.batch


def read(path: Path) -> list[Row | Refused]:
    return list(read_rows(path))


def only_reason(path: Path) -> str:
    (refused,) = [row for row in read(path) if isinstance(row, Refused)]
    return refused.reason


def test_a_csv_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('Text,ID,voice,speed,seed,other\n"Hello, you\nthere.",a,low,1.5,7,x\nBye.,,,,,\n')
    assert read(path) == [
        Row(1, "a", "Hello, you\nthere.", "low", speed=1.5, seed=7),
        Row(2, "000002", "Bye."),
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_delimiter_is_that_of_the_first_line(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"id{mark}text\nx{mark}Hello.\n")
    assert read(path) == [Row(1, "x", "Hello.")]


def test_jsonl_txt_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "Hi.", "id": 5, "speed": 2}\n\n{"text": "Yo.", "seed": 3.0}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("A whole\ntext.\n")
    assert read(tmp_path / "b.jsonl") == [Row(1, "5", "Hi.", speed=2.0), Row(2, "000002", "Yo.", seed=3)]
    assert read(tmp_path / "sub" / "c.txt") == [Row(1, "000001", "A whole"), Row(2, "000002", "text.")]
    assert [row.id for row in read(tmp_path)] == ["5", "000002", "sub/c"]


@pytest.mark.parametrize("form", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\nnaïve café 你好\n".encode(form))
    assert read(path) == [Row(1, "000001", "naïve café 你好")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_a_row_in_another_encoding_is_refused_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    rows = ["text\n", "naïve\n", "good\n"] if suffix == ".csv" else ["naïve\n", "good\n"]
    if suffix == ".jsonl":
        rows = [json.dumps({"text": row.strip()}, ensure_ascii=False) + "\n" for row in rows]
    path.write_bytes("".join(rows).encode("latin-1"))
    first, second = read(path)
    assert isinstance(first, Refused)
    assert "UTF-8" in first.reason
    assert isinstance(second, Row)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({}, "no text"),
        ({"text": "  "}, "no text"),
        ({"text": 5}, "not a string"),
        ({"text": "a" * (MAX_TEXT + 1)}, "characters"),
        ({"text": "a", "speed": "fast"}, "not a number"),
        ({"text": "a", "speed": "nan"}, "not a number"),
        ({"text": "a", "speed": True}, "not a number"),
        ({"text": "a", "seed": 1.5}, "not a number"),
        ({"text": "a", "seed": -1}, "seed must"),
        ({"text": "a", "seed": [1]}, "not a number"),
    ],
)
def test_bad_values_are_refused_with_a_reason(tmp_path: Path, row: dict, word: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + '\n{"text": "good"}\n')
    assert word in only_reason(path)


def test_lines_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n[1]\n{"text": \n{"text": "b"}\n')
    assert [type(row).__name__ for row in read(path)] == ["Row", "Refused", "Refused", "Row"]
    table = tmp_path / "a.csv"
    table.write_text("id,text\n1,a,b\n2,c\n" + f"3,{'x' * 140_000}\n4,d\n")
    assert [type(row).__name__ for row in read(table)] == ["Refused", "Row", "Refused", "Row"]


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,words\n1,a\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "a.doc").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, error, word in (
        ("a.csv", BadInput, "no column named text"),
        ("empty.csv", BadInput, "empty"),
        ("a.doc", BadInput, "read from"),
        ("none.csv", MissingFile, "no table"),
        ("folder", BadInput, "no texts"),
    ):
        with pytest.raises(error, match=word):
            read(tmp_path / name)


def test_parquet_and_a_damaged_row_group(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow (extra batch)")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    texts = [f"text number {i} {'x' * 50}" for i in range(30)]
    parquet.write_table(pyarrow.table({"Text": texts, "id": list(range(30))}), path, row_group_size=10)
    assert [(r.id, r.text) for r in read(path) if isinstance(r, Row)] == [(str(i), t) for i, t in enumerate(texts)]

    meta = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = meta.dictionary_page_offset or meta.data_page_offset
    data[start : start + meta.total_compressed_size] = b"\xff" * meta.total_compressed_size
    path.write_bytes(data)
    rows = read(path)
    assert [isinstance(row, Row) for row in rows] == [True] * 10 + [False] * 10 + [True] * 10
    assert [row.number for row in rows] == list(range(1, 31))

    path.write_bytes(bytes(data[:100]))
    with pytest.raises(CorruptFile, match="parquet"):
        read(path)
    (tmp_path / "b.txt").write_text("good")
    assert [type(row).__name__ for row in read(tmp_path)] == ["Refused", "Row"]  # in a folder the others go on


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="�\x00"), max_size=30), max_size=6
    )
)
def test_any_table_of_texts_comes_back(tmp_path: Path, texts: list[str]) -> None:
    """csv, jsonl and parquet hold the same rows, and every row is either usable or refused, in order."""
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([f"i{n}", text] for n, text in enumerate(texts))
    rows = [{"id": f"i{n}", "text": text} for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("a.csv", "a.jsonl"):
        found = read(tmp_path / name)
        assert [row.number for row in found] == list(range(1, len(texts) + 1))
        assert [isinstance(row, Row) for row in found] == [bool(text.strip()) for text in texts]
        assert [row.text for row in found if isinstance(row, Row)] == [text for text in texts if text.strip()]
