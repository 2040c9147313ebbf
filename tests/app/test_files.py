"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaver.app.files import check_readable, check_writable, replacing, slug
from quaver.errors import BadInput, MissingFile


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_link_is_followed_and_a_device_is_not_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    with replacing(link) as file:
        file.write(b"x")
    assert link.is_symlink()
    assert target.read_bytes() == b"x"
    with replacing("/dev/null") as file:
        file.write(b"x")
    assert Path("/dev/null").is_char_device()


def test_places_that_cannot_be_written_or_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="does not exist"):
        check_writable(tmp_path / "no" / "a.wav")
    with pytest.raises(BadInput, match="folder"):
        check_writable(tmp_path)
    with pytest.raises(BadInput, match="too long"):
        check_writable(tmp_path / ("x" * 300))
    with pytest.raises(MissingFile, match="no file"):
        check_readable(tmp_path / "none")
    with pytest.raises(BadInput, match="folder"):
        check_readable(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hello world.", "hello-world"),
        ("It's 5 o'clock!", "its-5-oclock"),
        ("Café Zoë", "cafe-zoe"),
        ("../../etc/passwd", "etc-passwd"),
        ("你好", "speech"),
        ("", "speech"),
        ("word " * 50, "-".join(["word"] * 12)),
        ("x" * 500, "x" * 60),
    ],
)
def test_slug(text: str, name: str) -> None:
    assert slug(text) == name


@given(st.text())
def test_a_slug_is_always_a_plain_file_name(text: str) -> None:
    name = slug(text)
    assert 1 <= len(name) <= 60
    assert name.isascii()
    assert not set(name) & {os.sep, ".", " ", "\0"}
    assert not name.startswith("-")
