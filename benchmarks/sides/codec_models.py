"""Codecs: whole recordings, and streams frame by frame. EnCodec, Mimi, DAC and Vocos have random weights: they cost
what the trained ones do, and nothing is fetched.

`whole`: encode and decode of `seconds` of noise, with `encode` and `decode` in CPU milliseconds per second of audio.
`stream`: `steps` frames of one stream, through encoder and decoder each, with the median `frame_ms` of CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

RATE = 24_000
MIMI_LEVELS, ENCODEC_LEVELS = 8, 8


@dataclass
class Entry:
    """`encode`: audio float32 `[1, 1, sample]` -> what `decode` takes. `stream`: -> a function that takes a frame of
    `frame` samples through encoder and decoder."""

    frame: int
    bitrate: float
    model: Any
    parameters: int
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Any]
    stream: Callable[[], Callable[[Tensor], Any]] | None = None


def size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def of_ours(codec: Any, levels: int | None = None, recorded: bool = False) -> Entry:
    from quaver.codecs.frame_stream import FrameStream

    spec = codec.frame_spec
    kept = levels or spec.codebooks

    def stream() -> Callable[[Tensor], Any]:
        if recorded:
            frames = FrameStream(codec)
            return lambda frame: frames.decode(frames.encode(frame))
        state = codec.init_state(1)
        return lambda frame: codec.decode(codec.encode(frame, state=state)[0][:, :kept], state)

    bitrate = float(spec.rate) * kept * (spec.vocab - 1).bit_length()
    return Entry(
        codec.frame_size,
        bitrate,
        codec,
        size(codec),
        lambda audio: codec.encode(audio)[0][:, :kept],
        codec.decode,
        stream,
    )


def native(half: bool = False, recorded: bool = False) -> Entry:
    from quaver.codecs.loading import load_codec
    from quaver.nn.packed import pack_linears

    codec = load_codec()
    parameters = size(codec)
    if half:
        pack_linears(codec)
    made = of_ours(codec, recorded=recorded)
    made.parameters = parameters  # packed weights are not parameters any more
    return made


def our_encodec() -> Entry:
    from quaver.codecs.encodec_causal import EncodecCodec, EncodecConfig

    codec = EncodecCodec(EncodecConfig()).eval()
    codec.keep(ENCODEC_LEVELS)
    return of_ours(codec)


def our_mimi(recorded: bool = False, half: bool = False) -> Entry:
    from quaver.codecs.mimi import MimiCodec, MimiConfig
    from quaver.nn.packed import lay_out_linears, pack_linears

    codec = MimiCodec(MimiConfig()).eval()
    codec.keep(MIMI_LEVELS)
    parameters = size(codec)
    lay_out_linears(codec)  # as `load_mimi` does
    if half:
        pack_linears(codec)
    made = of_ours(codec, recorded=recorded)
    made.parameters = parameters
    return made


def encodec() -> Entry:
    from encodec import EncodecModel

    model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    model.set_target_bandwidth(6.0)
    return Entry(320, 6000.0, model, size(model), model.encode, model.decode)


def transformers_mimi() -> Entry:
    from transformers import MimiConfig, MimiModel

    model: Any = MimiModel(MimiConfig()).eval()
    return Entry(
        1920,
        1100.0,
        model,
        size(model),
        lambda audio: model.encode(audio, num_quantizers=MIMI_LEVELS).audio_codes,
        lambda codes: model.decode(codes).audio_values,
    )


def moshi_mimi() -> Entry:
    from moshi.models import loaders  # type: ignore[import-not-found]

    model = loaders.get_mimi(None, device="cpu")
    model.set_num_codebooks(MIMI_LEVELS)

    def stream() -> Callable[[Tensor], Any]:
        if model.is_streaming:
            model._stop_streaming()
        model.streaming_forever(1)
        return lambda frame: model.decode(model.encode(frame))

    return Entry(1920, 1100.0, model, size(model), model.encode, model.decode, stream)


def transformers_dac() -> Entry:
    from transformers import DacConfig, DacModel

    shape: dict[str, Any] = {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": RATE}
    model: Any = DacModel(DacConfig(**shape)).eval()
    return Entry(
        320,
        24_000.0,
        model,
        size(model),
        lambda audio: model.encode(audio).audio_codes,
        lambda codes: model.decode(audio_codes=codes).audio_values,
    )


def dac() -> Entry:
    """Package `descript-audio-codec`, its 24 kHz model."""
    from dac import DAC  # type: ignore[import-not-found]

    model: Any = DAC(encoder_rates=[2, 4, 5, 8], decoder_rates=[8, 5, 4, 2], n_codebooks=32, sample_rate=RATE).eval()
    return Entry(320, 24_000.0, model, size(model), lambda audio: model.encode(audio)[0], model.decode)


ENTRIES: dict[str, Callable[..., Entry]] = {
    f.__name__: f
    for f in (native, our_encodec, our_mimi, encodec, transformers_mimi, moshi_mimi, transformers_dac, dac)
}


def _noise(seconds: float) -> Tensor:
    samples = int(seconds * RATE) // 1920 * 1920
    return 0.1 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(0))


def whole(codec: str, seconds: float = 2.0, device: str = "cpu", **options: Any) -> tuple[Any, dict[str, Any]]:
    """A recording of `seconds`."""
    torch.manual_seed(0)
    entry, audio = ENTRIES[codec](**options), _noise(seconds).to(device)
    entry.model.to(device)
    spoken = audio.shape[-1] / RATE

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        begun = time.process_time()
        frames = entry.encode(audio)
        middle = time.process_time()
        entry.decode(frames)
        ended = time.process_time()
        return {
            "units": spoken,
            "encode": 1000 * (middle - begun) / spoken,
            "decode": 1000 * (ended - middle) / spoken,
        }

    return call, {"parameters": entry.parameters, "bitrate": entry.bitrate}


@torch.inference_mode()
def stream(codec: str, steps: int = 25, device: str = "cpu", **options: Any) -> tuple[Any, dict[str, Any]]:
    """`steps` frames of one stream that goes on from repetition to repetition."""
    torch.manual_seed(0)
    entry = ENTRIES[codec](**options)
    assert entry.stream is not None
    entry.model.to(device)
    step, audio = entry.stream(), _noise(2.0).to(device)
    pieces = [p for p in audio.split(entry.frame, -1) if p.shape[-1] == entry.frame]

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        spent = []
        for i in range(steps):
            begun = time.process_time()
            step(pieces[i % len(pieces)])
            spent.append(1000 * (time.process_time() - begun))
        return {"units": steps * entry.frame / RATE, "frame_ms": median(spent)}

    return call, {"parameters": entry.parameters, "bitrate": entry.bitrate, "frame": 1000 * entry.frame / RATE}


# -- vocoders ---------------------------------------------------------------------------------------------------------
def decode(codec: str, seconds: float = 2.0, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Only the decoder, of what the encoder made once."""
    torch.manual_seed(0)
    entry, audio = ENTRIES[codec](**options), _noise(seconds)
    with torch.inference_mode():
        frames = entry.encode(audio)

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        entry.decode(frames)
        return {"units": audio.shape[-1] / RATE}

    return call, {"parameters": entry.parameters}


def vocos(seconds: float = 2.0) -> tuple[Any, dict[str, Any]]:
    """Package `vocos`: mel to waveform, the published mel model's sizes (24 kHz, 100 mels, dim 512, 8 layers)."""
    from vocos.heads import ISTFTHead  # type: ignore[import-not-found]
    from vocos.models import VocosBackbone  # type: ignore[import-not-found]

    torch.manual_seed(0)
    backbone = VocosBackbone(input_channels=100, dim=512, intermediate_dim=1536, num_layers=8).eval()
    head = ISTFTHead(dim=512, n_fft=1024, hop_length=256, padding="center").eval()
    mel = torch.randn(1, 100, int(seconds * RATE / 256))

    @torch.inference_mode()
    def call() -> dict[str, Any]:
        head(backbone(mel))
        return {"units": mel.shape[-1] * 256 / RATE}

    return call, {"parameters": size(backbone) + size(head)}
