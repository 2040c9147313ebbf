"""All rows and tables, by name. What a side does is in `benchmarks/sides`; how rows are run, in `runner.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .report import PARAMETERS, Column, Table
from .runner import Row, Side

LM, CODEC, DUPLEX, SPEAK, START = (
    "language_model.py",
    "codec_models.py",
    "duplex.py",
    "speaking.py",
    "start_up.py",
)
MB = Column("peak", "peak MB", 1e-6, 0)


LM_REMARKS = {
    "5M": "the aim of 3x holds with half-precision weights (the two ratios divided), and all but holds in float32.",
    "20M": "the aim of 3x holds with half-precision weights (the two ratios divided), not in float32.",
    "120M": "the aim of half the roofline is met. Short of the aim of 3x: in float32 both sides read the same 475 MB a "
    "token, of which ours leaves little to gain; half-precision weights come to 2.6x.",
}


def _lm(size: str, title: str) -> Row:
    work = {"size": size, "prompt": 64, "new": 48}
    sides = (
        Side("quaver, float32", f"{LM}:ours", work),
        Side("quaver, half-precision weights", f"{LM}:ours", work | {"half": True}),
        Side("quaver, whole loop of `say`, half precision", f"{LM}:spoken", work),
        Side("transformers, static cache", f"{LM}:transformers", work),
        Side("transformers, dynamic cache", f"{LM}:transformers", work | {"cache": "dynamic"}),
    )
    return Row(f"lm-{size}", "lm", title, sides, remark=LM_REMARKS.get(size, ""))


def _prefill(size: str, title: str) -> Row:
    work = {"size": size, "prompt": 256}
    sides = (
        Side("quaver, float32", f"{LM}:ours_prefill", work | {"chunk": 64}),
        Side("quaver, half-precision weights", f"{LM}:ours_prefill", work | {"chunk": 64, "half": True}),
        Side("transformers, static cache", f"{LM}:transformers_prefill", work),
    )
    remark = (
        "lost: ours reads a text in chunks of 64 into a ring with a mask, so that no slot of a batch waits for the "
        "text of another; the other reads it in one piece."
    )
    return Row(f"prefill-{size}", "prefill", title, sides, seconds=30, remark=remark)


def _moshi(name: str, dim: int, layers: int, slots: int = 1) -> Row:
    work = {"dim": dim, "layers": layers, "steps": 10, "slots": slots}
    sides = (
        Side("quaver, float32", f"{DUPLEX}:ours", work, peers=True),
        Side("quaver, half-precision weights", f"{DUPLEX}:ours", work | {"half": True}, peers=True),
        Side("moshi, LMGen", f"{DUPLEX}:moshi", work, peers=True),
    )
    title = f"dim {dim}, {layers} layers, {_plural(slots, 'slot')}"
    return Row(f"moshi-{name}", "moshi", title, sides, seconds=40)


def _codec(name: str, function: str, codec: str, peers: bool = False, **settings: Any) -> Side:
    return Side(name, f"{CODEC}:{function}", {"codec": codec, **settings}, peers)


def _cold(title: str, function: str, **settings: Any) -> Side:
    return Side(title, f"{START}:worker", {"target": function, "settings": settings}, peers=True)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count > 1)


SIZES = ("5M", "20M", "120M", "350M")
SENTENCES = (1, 4, 12)
"""Of about five seconds each."""

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "lm",
            "Language model, batch 1",
            "ms a token",
            "48 tokens drawn after 64 of a prompt (temperature 0.8, top-k 50), float32 unless it is said; timed from "
            "the first drawn token to the last, as prefill has its own rows. The same weights in all sides but the "
            "whole loop's; float32 sides are checked to say the same greedy tokens.",
            columns=(PARAMETERS,),
        ),
        Table("prefill", "Prefill", "ms a token", "256 tokens into a cache.", columns=(PARAMETERS,), digits=3),
        Table(
            "moshi",
            "A step of Moshi's network",
            "ms a step",
            "17 streams, 8 of them drawn by a depth transformer with weights of its own for each level; the same "
            "weights in all sides, temperature 0.8, top-k 250.",
            columns=(PARAMETERS,),
        ),
        Table("depth", "Depth loop", "ms a frame", "8 codes of one frame.", columns=(PARAMETERS,)),
        Table(
            "codec",
            "Codecs, whole recordings",
            "ms a second of audio",
            "Encode and decode of 2 s of noise. Random weights but for quaver-24k.",
            digits=1,
            columns=(
                PARAMETERS,
                Column("bitrate", "kbit/s", 1e-3),
                Column("encode", "encode"),
                Column("decode", "decode"),
            ),
        ),
        Table(
            "stream",
            "Codecs, frame by frame",
            "ms a second of audio",
            "Encoder and decoder of one stream.",
            digits=1,
            columns=(PARAMETERS, Column("frame", "frame ms", 1, 1), Column("frame_ms", "CPU ms a frame", 1, 1)),
        ),
        Table("vocoder", "Decoders", "ms a second of audio", digits=1, columns=(PARAMETERS,)),
        Table(
            "speech",
            "Text to speech",
            "s a second of speech",
            "One sentence of about five seconds, from text to the last sample (real-time factor). pocket-tts has "
            "random weights and speaks 4 s; the others are trained. What does not stream gives its first sound "
            "with its last.",
            digits=3,
            columns=(
                Column("bytes", "model MB", 1e-6),
                Column("first_cpu", "first audio, CPU ms", 1, 0),
                Column("first_wall", "wall", 1, 0),
                Column("seconds", "seconds spoken", 1, 1),
                MB,
            ),
        ),
        Table(
            "start",
            "From nothing to the first sound",
            "s",
            "A fresh process for every repetition: interpreter, imports, model, first samples.",
            columns=(MB,),
        ),
        Table(
            "duplex",
            "quaver-duplex over slots",
            "ms a session and frame",
            "Audio in, audio out (codec, backbone, depth), recorded; ratios against one slot: below 1, slots share.",
            columns=(Column("slots", "slots", 1, 0),),
        ),
        Table(
            "slots",
            "quaver-en over slots",
            "ms a session and frame",
            "The bundled voice as the server steps it (front end, language model, decoder); ratios against one slot.",
            columns=(Column("slots", "slots", 1, 0),),
        ),
        Table(
            "size",
            "Cost against model size",
            "ms a token",
            "One slot, half-precision weights, 16 tokens of prompt and 8 drawn.",
            columns=(PARAMETERS,),
        ),
        Table(
            "length",
            "Cost against length",
            "s a second of speech",
            "The bundled voice says a text of so many sentences.",
            digits=3,
            columns=(Column("seconds", "seconds spoken"), Column("first_cpu", "first audio, CPU ms", 1, 0), MB),
        ),
        Table(
            "codec-length",
            "Codec cost against length",
            "ms a second of audio",
            "quaver-24k, encode and decode, frame by frame in half precision.",
            columns=(MB,),
        ),
    )
}

ON_DEVICES = tuple(
    [f"{LM}:{name}" for name in ("ours", "transformers", "ours_prefill", "transformers_prefill")]
    + [f"{CODEC}:{name}" for name in ("whole", "stream")]
)
"""Sides that take a `device`."""


def on_device(rows: Sequence[Row], device: str) -> list[Row]:
    """The rows whose sides can run on `device`, there: language models in bfloat16 on all sides, codecs in float32."""
    made = []
    for row in rows:
        sides = []
        for side in row.sides:
            language = side.target.startswith(LM)
            if side.target not in ON_DEVICES or side.settings.get("half") or side.settings.get("recorded"):
                continue
            more = {"device": device, **({"half": True} if language else {})}
            name = side.name.replace("float32", "bfloat16")
            name += ", bfloat16" if language and not name.startswith("quaver") else ""
            sides.append(replace(side, name=name, settings=side.settings | more))
        if sides and sides[0].name.startswith("quaver"):
            made.append(replace(row, sides=tuple(sides), remark=""))
    return made


_ROWS = (
    _lm("5M", "5 M"),
    _lm("20M", "20 M"),
    _lm("120M", "120 M"),
    _prefill("20M", "20 M"),
    _prefill("120M", "120 M"),
    _moshi("small", 256, 6),
    _moshi("middle", 512, 8),
    _moshi("middle-8", 512, 8, slots=8),
    Row(
        "depth",
        "depth",
        "width 256, 4 layers",
        (
            Side("quaver, DepthHead", "depth_loop.py:ours"),
            Side("quaver, half-precision weights", "depth_loop.py:ours", {"half": True}),
            Side("transformers, CSM depth decoder, dynamic cache", "depth_loop.py:csm"),
            Side("transformers, CSM depth decoder, static cache", "depth_loop.py:csm", {"cache": "static"}),
        ),
        seconds=30,
        remark="short of the aim of 3x: the transformer's step comes from a recording, the draws and the inputs of the "
        "levels do not; every level makes its rotary tables and masks anew.",
    ),
    Row(
        "codec-mimi",
        "codec",
        "Mimi, 8 levels",
        (
            _codec("quaver", "whole", "our_mimi"),
            _codec("transformers", "whole", "transformers_mimi"),
            _codec("moshi", "whole", "moshi_mimi", peers=True),
        ),
    ),
    Row(
        "codec-encodec",
        "codec",
        "EnCodec, 24 kHz",
        (_codec("quaver", "whole", "our_encodec"), _codec("encodec", "whole", "encodec")),
        seconds=30,
    ),
    Row(
        "codec-native",
        "codec",
        "quaver-24k beside others",
        (
            _codec("quaver-24k", "whole", "native"),
            _codec("quaver-24k, half-precision weights", "whole", "native", half=True),
            _codec("EnCodec (encodec)", "whole", "encodec"),
            _codec("Mimi (moshi)", "whole", "moshi_mimi", peers=True),
            _codec("DAC (transformers)", "whole", "transformers_dac", seconds=0.5),
            _codec("DAC (descript-audio-codec)", "whole", "dac", peers=True, seconds=0.5),
        ),
    ),
    Row(
        "stream-mimi",
        "stream",
        "Mimi, 8 levels",
        (
            _codec("quaver", "stream", "our_mimi", steps=10),
            _codec("quaver, recorded", "stream", "our_mimi", steps=10, recorded=True),
            _codec("quaver, recorded, half precision", "stream", "our_mimi", steps=10, recorded=True, half=True),
            _codec("moshi", "stream", "moshi_mimi", peers=True, steps=10),
        ),
        remark="the aim is 0.8 of `moshi`'s time. Ours took 1.16 of it before convolutions of few steps became "
        "products (`nn/conv.py`) and weights were stored in the order in which a step reads them (`nn/packed.py`).",
    ),
    Row(
        "stream-native",
        "stream",
        "quaver-24k beside others",
        (
            _codec("quaver-24k", "stream", "native"),
            _codec("quaver-24k, recorded", "stream", "native", recorded=True),
            _codec("quaver-24k, recorded, half-precision weights", "stream", "native", recorded=True, half=True),
            _codec("Mimi (moshi)", "stream", "moshi_mimi", peers=True, steps=10),
        ),
    ),
    Row(
        "vocoder",
        "vocoder",
        "decoder alone",
        (
            _codec("quaver-24k", "decode", "native"),
            _codec("EnCodec (encodec)", "decode", "encodec"),
            Side("Vocos (vocos)", f"{CODEC}:vocos", peers=True),
        ),
        seconds=20,
    ),
    Row(
        "speech",
        "speech",
        "one sentence",
        (
            Side("quaver-en", f"{SPEAK}:quaver"),
            Side("quaver, ardit-1step", f"{SPEAK}:quaver", {"model": "ardit-1step"}),
            Side("hibari-tts", f"{SPEAK}:teacher", {"name": "hibari"}, peers=True),
            Side("Piper joe", f"{SPEAK}:teacher", {"name": "joe"}, peers=True),
            Side("pocket-tts, 18 M", f"{SPEAK}:pocket_tts", {"config": "english_18m_2026-10"}, peers=True),
            Side("pocket-tts, 100 M", f"{SPEAK}:pocket_tts", peers=True),
            Side("Kokoro-82M, int8", f"{SPEAK}:teacher", {"name": "kokoro"}, peers=True),
        ),
        scale=1,
        seconds=75,
        remark="lost to hibari-tts and Piper in real-time factor: one pass of a small network over a whole sentence, "
        "where ours draws frame after frame, so that it can stream; first audio is ours all the same. Three times "
        "pocket-tts, the aim, is reached by ardit-1step and not by quaver-en.",
    ),
    Row(
        "start",
        "start",
        "cold",
        (
            Side("quaver say, quaver-en", f"{START}:quaver_say"),
            Side("quaver say, ardit-1step", f"{START}:quaver_say", {"model": "ardit-1step"}),
            Side("Python with `import torch`, nothing else", f"{START}:torch_alone"),
            _cold("hibari-tts", "teacher", name="hibari"),
            _cold("Piper joe", "teacher", name="joe"),
            _cold("Kokoro-82M, int8", "teacher", name="kokoro"),
            _cold("pocket-tts, 100 M, random weights", "pocket_tts"),
        ),
        scale=1,
        rounds=3,
        warmup=0,
        seconds=90,
        remark="the aims of 3 s and 600 MB are not met: torch alone takes nearly half of the time and 500 MB, "
        "and hibari-tts, which runs without torch, starts three times faster.",
    ),
    Row(
        "duplex",
        "duplex",
        "frames of 40 ms",
        tuple(
            Side(f"quaver-duplex, {_plural(n, 'slot')}", f"{DUPLEX}:bundled", {"slots": n, "ticks": max(2, 24 // n)})
            for n in (1, 2, 4, 8, 16, 32)
        ),
        rounds=5,
    ),
    Row(
        "slots",
        "slots",
        "frames of 40 ms",
        tuple(
            Side(f"quaver-en, {_plural(n, 'slot')}", f"{SPEAK}:many", {"slots": n, "ticks": max(4, 48 // n)})
            for n in (1, 4, 16, 64)
        ),
        rounds=5,
    ),
    Row(
        "size",
        "size",
        "half precision",
        tuple(
            Side(f"quaver, {size}", f"{LM}:ours", {"size": size, "prompt": 16, "new": 8, "half": True})
            for size in SIZES
        ),
        rounds=5,
    ),
    Row(
        "length",
        "length",
        "quaver-en",
        tuple(Side(f"quaver-en, {_plural(n, 'sentence')}", f"{SPEAK}:quaver", {"sentences": n}) for n in SENTENCES),
        scale=1,
        rounds=2,
        warmup=0,
    ),
    Row(
        "codec-length",
        "codec-length",
        "quaver-24k",
        tuple(
            _codec(f"quaver-24k, {n} s", "stream", "native", recorded=True, half=True, steps=25 * n)
            for n in (5, 60, 600)
        ),
        rounds=2,
        warmup=0,
    ),
)
ROWS: dict[str, Row] = {row.name: row for row in _ROWS}
