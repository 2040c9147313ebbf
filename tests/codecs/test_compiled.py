"""The compiled codec gives what the plain one gives, whole and streamed; a switch turns compilation off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from quaver.codecs.base import Codec
from quaver.codecs.compiled import SWITCH, compiled
from quaver.errors import BadInput

from ..laws import TOLERANCE
from .test_export_onnx import made, sound


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same(codec: Codec, plain: Codec, chunks: list[int]) -> None:
    audio = sound(2, sum(chunks) * codec.frame_size)
    with torch.no_grad():
        codes, wanted = codec.encode(audio)[0], plain.encode(audio)[0]
        assert torch.equal(codes, wanted)
        torch.testing.assert_close(codec.decode(codes), plain.decode(codes), atol=1e-4, rtol=1e-4)
        state, parts, codes_too = codec.init_state(2), [], []
        for part in audio.split([n * codec.frame_size for n in chunks], -1):
            codes_too.append(codec.encode(part, state=state)[0])
            parts.append(codec.decode(codes_too[-1], state))
        assert torch.equal(torch.cat(codes_too, -1), wanted)
        streamed = torch.cat([*parts, codec.flush(state)], -1)[..., codec.latency :]
        torch.testing.assert_close(streamed, plain.decode(codes), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.long
def test_what_is_compiled_is_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and run by torch itself, which needs no compiler: no part of the state may be lost on the way."""
    monkeypatch.delenv(SWITCH, raising=False)
    codec = compiled(made(), backend="aot_eager")
    assert codec.encoder_fast[0]._compiled_call_impl is not None  # type: ignore[index, union-attr]
    same(codec, made(), [3, 1, 1, 4])


def test_the_switch_leaves_everything_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    codec = compiled(made())
    assert all(module._compiled_call_impl is None for module in codec.modules())


def test_only_native_codecs_are_compiled() -> None:
    with pytest.raises(BadInput, match="native"):
        compiled(Codec())


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_inductor_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    same(compiled(made()), made(), [3, 1, 1, 4])
