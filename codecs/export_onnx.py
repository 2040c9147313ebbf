"""The native codec's two steps as ONNX graphs, with every tensor of the stream's state as an input and an output.

    encoder.onnx: audio [batch, 1, frame_size], state -> codes [batch, codebooks, 1], state
    decoder.onnx: codes [batch, codebooks, 1], state -> audio [batch, 1, frame_size], state
    codec.json:   the names, shapes and types of the states, and the codec's rates

A run starts with zeros and feeds each step's `next.NAME` back as `state.NAME` (the state in and out of pocket-tts). The
decoded stream is late by `latency` samples; the last ones are the decoder's state `head.istft.tail`, as it stands.

ONNX has no complex numbers that its runtimes agree on (vocos issue 38), so the Fourier transforms are matrix products
here; all else is the codec's own code.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput, MissingExtra
from ..nn.state import State, StreamingModule
from ..nn.stft import STFT, InverseSTFT
from .base import Codec
from .decoders import NOISE_FRAMES, HarmonicHead, ISTFTHead
from .features import LogMel
from .native import XCodec

__all__ = ["export_onnx"]

OPSET = 17
_ENCODER = ("front", "encoder_fast", "encoder_slow", "semantic_blocks")
_DECODER = ("decoder_slow", "decoder_fast", "head")


def export_onnx(codec: Codec, folder: Path) -> list[Path]:
    """Writes both graphs and their description; the codec runs in float32 on the CPU.

    Raises:
        BadInput: not a native codec, or one that cannot stream. MissingExtra: no `onnx`.
    """
    if not isinstance(codec, XCodec) or codec.frame_spec.kind != "codes":
        raise BadInput("only native codecs of codes can be exported to ONNX; published ones have their own")
    try:
        import onnx  # noqa: F401 (torch's exporter asks for it late)
    except ImportError:
        raise MissingExtra("exporting to ONNX needs the package onnx: pip install 'quaver[train]'") from None
    spec, state = codec.frame_spec, codec.init_state(1)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "encoder": (_EncoderStep(codec), _ENCODER, ("audio", torch.zeros(1, 1, codec.frame_size)), "codes"),
        "decoder": (_DecoderStep(codec), _DECODER, ("codes", torch.zeros(1, spec.codebooks, 1).long()), "audio"),
    }
    about: dict[str, Any] = {
        "sample_rate": codec.sample_rate, "frame_size": codec.frame_size, "codebooks": spec.codebooks,
        "vocab": spec.vocab, "latency": codec.latency, "last_samples": "head.istft.tail",
    }  # fmt: skip
    paths = []
    for name, (step, roots, given, made) in parts.items():
        tensors = {path: tensor for path, tensor in state.tensors() if path.split(".")[0] in roots}
        step.names = list(tensors)
        paths.append(folder / f"{name}.onnx")
        _write(step, paths[-1], given, made, tensors)
        about[name] = {
            path: {"shape": [*tensor.shape[1:]], "type": str(tensor.dtype).removeprefix("torch.")}
            for path, tensor in tensors.items()
        }
    paths.append(folder / "codec.json")
    paths[-1].write_text(json.dumps(about, indent=1) + "\n")
    return paths


def _write(step: _Step, path: Path, given: tuple[str, Tensor], made: str, states: dict[str, Tensor]) -> None:
    inputs = [given[0], *(f"state.{name}" for name in states)]
    outputs = [made, *(f"next.{name}" for name in states)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about checks that a graph cannot make
        torch.onnx.export(
            step.eval(),
            (given[1], *states.values()),
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )


class _Flowing(State):
    """A state whose `update` replaces instead of writing in place: a graph has no memory."""

    @classmethod
    def of(cls, state: State, tensors: dict[str, Tensor], prefix: str = "") -> _Flowing:
        """The same tree, with these tensors by path (others are left as they are)."""
        made = cls(state.batch)
        made._tensors = {name: tensors.get(prefix + name, old) for name, old in state._tensors.items()}
        made._children = {
            name: cls.of(node, tensors, f"{prefix}{name}.") for name, node in state._children.items()
        }  # fmt: skip
        return made

    def update(self, name: str, value: Tensor) -> None:
        self._tensors[name] = value


class _Step(nn.Module):
    names: list[str]

    def __init__(self, codec: XCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        flowing = _Flowing.of(self.codec.init_state(1), dict(zip(self.names, states, strict=True)))
        made = self.step(x, flowing)
        after = dict(flowing.tensors())
        return made, *(after[name] for name in self.names)

    def step(self, x: Tensor, state: State) -> Tensor:
        raise NotImplementedError


class _EncoderStep(_Step):
    def __init__(self, codec: XCodec) -> None:
        super().__init__(copy.deepcopy(codec))
        setattr(self.codec, "front", _RealLogMel(codec.front, codec.config.patch))  # noqa: B010 (another class than the type says)

    def step(self, x: Tensor, state: State) -> Tensor:
        latents, _ = self.codec._latents(x, None, state)
        return self.codec.quantizer.encode(latents, self.codec.frame_spec.codebooks)


class _DecoderStep(_Step):
    noise: Tensor

    def __init__(self, codec: XCodec) -> None:
        super().__init__(codec)
        head = codec.head
        self.istft = _RealInverse(head.istft, codec.config.patch)
        if isinstance(head, HarmonicHead):
            self.stft = _RealSTFT(head.stft, codec.config.patch)
            self.register_buffer("noise", torch.view_as_real(head.amount * head.noise).permute(2, 1, 0).contiguous())

    def step(self, x: Tensor, state: State) -> Tensor:
        hidden = self.codec._hidden(self.codec.quantizer.decode(x), state).transpose(1, 2)
        head, node = self.codec.head, state.child("head")
        if isinstance(head, ISTFTHead):
            gain, phase = head.linear(hidden).chunk(2, -1)
            pair = _polar(gain.clamp(max=4.6).exp(), phase)
        else:
            pair = self._harmonic(head, hidden, node)
        return self.istft(*pair, node.child("istft"))[:, None]

    def _harmonic(self, head: HarmonicHead, hidden: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """`HarmonicHead.forward` over pairs of real numbers; `hidden[batch, frame, width]`."""
        log_f0, voicing = head.pitch(hidden).unbind(-1)
        f0 = head._decide(log_f0 * 0.3 + 5.2, voicing)
        pulses = self.stft(head._pulses(f0, state), state.child("stft"))
        start, frames = state["frame"], f0.shape[1]
        state.update("frame", (start + frames) % NOISE_FRAMES)
        index = (start[:, None] + torch.arange(frames)) % NOISE_FRAMES
        gain, phase, noise_gain, free_gain, free_phase = head.filters(hidden).chunk(5, -1)
        wet = _polar(gain.clamp(-12, 5).exp(), phase)
        free = _polar((free_gain - 3).clamp(-12, 6).exp(), 3 * free_phase)
        noise_gain = (noise_gain - 2).clamp(-12, 5).exp()
        real = wet[0] * pulses[0] - wet[1] * pulses[1] + noise_gain * self.noise[0][index] + free[0]
        imaginary = wet[0] * pulses[1] + wet[1] * pulses[0] + noise_gain * self.noise[1][index] + free[1]
        return real, imaginary


def _polar(magnitude: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    return magnitude * phase.cos(), magnitude * phase.sin()


def _basis(n_fft: int) -> Iterator[Tensor]:
    """cos and -sin `[n_fft, bins]`, from angles in double precision."""
    turns = torch.outer(torch.arange(n_fft), torch.arange(n_fft // 2 + 1)) % n_fft
    angles = turns.double() * (2 * torch.pi / n_fft)
    yield from (angles.cos().float(), -angles.sin().float())


class _RealSTFT(nn.Module):
    """`STFT` with a state, as real and imaginary part `[batch, frame, bins]`."""

    real: Tensor
    imaginary: Tensor

    def __init__(self, stft: STFT, frames: int) -> None:
        super().__init__()
        self.frames = frames  # a graph of fixed size: as many as one frame of codes holds
        self.n_fft, self.hop, self.overlap = stft.n_fft, stft.hop, stft.overlap
        for name, basis in zip(("real", "imaginary"), _basis(stft.n_fft), strict=True):
            self.register_buffer(name, basis * stft.window[:, None])

    def forward(self, audio: Tensor, state: State) -> tuple[Tensor, Tensor]:
        audio = torch.cat([state["previous"], audio], -1)
        state.update("previous", audio[..., -self.overlap :])
        frames = torch.stack([audio[:, t * self.hop :][:, : self.n_fft] for t in range(self.frames)], 1)
        return frames @ self.real, frames @ self.imaginary


class _RealLogMel(StreamingModule):
    """`LogMel` with a state, without complex numbers."""

    def __init__(self, front: LogMel, frames: int) -> None:
        super().__init__()
        self.front, self.stft = front, _RealSTFT(front.stft, frames)

    def init_state(self, batch: int) -> State:
        return self.front.init_state(batch)

    def forward(self, audio: Tensor, state: State) -> Tensor:
        real, imaginary = self.stft(audio[:, 0], state.child("stft"))
        mel = (real.square() + imaginary.square()).sqrt() @ self.front.bank
        return ((mel.clamp(min=1e-5).log() + 5.0) / 3.0).transpose(1, 2)


class _RealInverse(nn.Module):
    """`InverseSTFT` with a state, from real and imaginary part `[batch, frame, bins]`."""

    real: Tensor
    imaginary: Tensor

    def __init__(self, istft: InverseSTFT, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.n_fft, self.hop = istft.n_fft, istft.hop
        weights = torch.full((istft.n_fft // 2 + 1, 1), 2 / istft.n_fft)  # a bin stands for its mirror image too
        weights[[0, -1]] /= 2
        window = istft.window / istft._gain()
        for name, basis in zip(("real", "imaginary"), _basis(istft.n_fft), strict=True):
            self.register_buffer(name, weights * basis.T * window)

    def forward(self, real: Tensor, imaginary: Tensor, state: State) -> Tensor:
        frames = real @ self.real + imaginary @ self.imaginary
        audio, tail = [], state["tail"]
        for t in range(self.frames):
            summed = torch.nn.functional.pad(tail, (0, self.hop)) + frames[:, t]
            audio.append(summed[:, : self.hop])
            tail = summed[:, self.hop :]
        state.update("tail", tail)
        return torch.cat(audio, -1)
