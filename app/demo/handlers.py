"""What the demo's buttons do. Speech comes from the server's own service, with its limits and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI

from ...errors import QuaverError
from ...tts.voices import SUFFIX
from ..engine import Audio, Outcome
from ..engine_tokens import can_clone, default_voice
from ..server.gate import Context
from ..server.problems import Problem, problem_of
from ..server.service import SpeechService, Wish, problem_of_outcome, word_times
from ..server.voices import check_words, make_voice
from .codec_lab import CodecLab, Coding
from .edit_lab import EditLab, Rewriting
from .pictures import figure, heat_map, marked, spectrogram, waveform

# Without Gradio `add_demo` says what to install. It has to be a global: Gradio reads the annotation `gr.Request`.
with contextlib.suppress(ImportError):
    import gradio as gr

__all__ = ["COLUMNS", "Handlers"]

log = logging.getLogger(__name__)
COLUMNS = 4
"""Models that the Compare tab shows at a time."""


@dataclass(frozen=True)
class Spoken:
    """A whole answer: float32 `[n]`, its words with times, and seconds of the wall clock."""

    samples: np.ndarray
    sample_rate: int
    words: str
    first_audio: float
    total: float


def told(error: BaseException) -> gr.Error:
    """An error as a message in the page; a bug's own text stays in the log."""
    if isinstance(error, gr.Error):
        return error
    problem = problem_of(error)
    if problem.code == "internal":
        log.error("a handler of the demo failed", exc_info=error)
        return gr.Error("This failed on the server; its log says why.", print_exception=False)
    return gr.Error(problem.message, print_exception=False)


def _telling(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of an `async def` as messages."""

    @functools.wraps(handler)
    async def call(*arguments: Any) -> Any:
        try:
            return await handler(*arguments)
        except Exception as error:
            raise told(error) from None

    return call


class Handlers:
    """Bound to an application, whose service exists once it runs.

    Args:
        lab: the codecs of the codec lab. editors: the models of the Edit tab.
    """

    def __init__(self, app: FastAPI, lab: CodecLab, editors: EditLab) -> None:
        self.app, self.lab, self.editors = app, lab, editors
        self.add_voice = _telling(self._add_voice)
        self.code = _telling(self._code)
        self.edit = _telling(self._edit)

    @property
    def service(self) -> SpeechService:
        return self.app.state.service

    # -- names --------------------------------------------------------------------------------------------------------
    def models(self) -> list[str]:
        """Models that speak."""
        return list(self.service.engine.models)

    def cloners(self) -> list[str]:
        """Models that imitate."""
        return [name for name in self.models() if can_clone(self.service.engine.synthesizer(name))]

    def voices(self, model: str | None, request: gr.Request) -> Any:
        """The voice menu of a model: its own voices, and those added for it."""
        if model not in self.models():
            return gr.update(choices=[], value=None)
        synthesizer = self.service.engine.synthesizer(model)
        added = [(v.name, v.id) for v in self.service.added.of(_context(request).caller.name) if v.model == model]  # type: ignore[union-attr]
        return gr.update(choices=[*((v, v) for v in synthesizer.voices), *added], value=default_voice(synthesizer))

    # -- clone --------------------------------------------------------------------------------------------------------
    async def _add_voice(
        self, recording: str | None, name: str, text: str, consent: bool, model: str | None, request: gr.Request
    ) -> Any:
        """Makes a voice; gives the message and the voice file."""
        if not recording:
            raise Problem("invalid_value", "record or upload 1 to 30 seconds of one speaker first")
        words = {"name": " ".join(name.split()), "text": " ".join(text.split()), "consent": "the demo" * bool(consent)}
        check_words(words | {"consent": "yes" if consent else ""})
        if model:
            words["model"] = model
        context = _context(request)
        assert context.caller is not None
        self.service.access.count(context.caller)
        data = await asyncio.to_thread(Path(recording).read_bytes)
        card = await make_voice(self.service, words, data, context.caller.name)
        file = self.service.added.folder / (card.id + SUFFIX)
        message = f"**{card.name}** is ready: choose it in Speak, with the model {card.model}, or keep the voice file."
        return message, gr.update(value=str(file), visible=True)

    # -- compare ------------------------------------------------------------------------------------------------------
    async def compare(self, text: str, models: list[str], seed: float, request: gr.Request) -> AsyncIterator[list[Any]]:
        """The text through several models in turn: (column, heading, audio, pictures and words) of each."""
        blank = [gr.update(visible=False), "", gr.update(value=None), ""]
        if not models:
            raise gr.Error("Choose at least one model.", print_exception=False)
        columns: list[list[Any]] = [list(blank) for _ in range(COLUMNS)]
        for place, model in enumerate(models[:COLUMNS]):
            columns[place][:2] = [gr.update(visible=True), f"### {model}\n\nSpeaking ..."]
            yield [cell for column in columns for cell in column]
            try:
                spoken = await self.say(Wish(text=text, model=model, seed=int(seed)), _context(request))
            except Exception as error:
                if len(models) == 1:
                    raise told(error) from None
                columns[place][1] = f"### {model}\n\n{told(error).message}"
                continue
            seconds = len(spoken.samples) / spoken.sample_rate
            factor = spoken.total / max(seconds, 1e-9)
            about = (
                f"### {model}\n\n{seconds:.2f} s of speech, first audio after {1000 * spoken.first_audio:.0f} ms, "
                f"real-time factor {factor:.2f}"
            )
            drawn = await asyncio.to_thread(_drawn, spoken)
            columns[place][1:] = [about, _sound(spoken.samples, spoken.sample_rate), drawn]
        yield [cell for column in columns for cell in column]

    async def say(self, wish: Wish, context: Context) -> Spoken:
        """A whole answer of the engine. Raises Problem."""
        parts: list[np.ndarray] = []
        words: list[str] = []
        with self.service.speak(wish, context, "demo", identity=f"{context.request_id}-{wish.model}") as speech:
            async for event in speech.events():
                if isinstance(event, Audio):
                    parts.append(event.samples)
                    words += [f"{w.text} {w.start:.2f}" for w in word_times(event)]
                    speech.sent(event.seconds, event.samples.nbytes)
                elif isinstance(event, Outcome):
                    problem = problem_of_outcome(event)
                    if problem is not None:
                        raise problem
            usage = speech.session.usage
            rate = self.service.engine.synthesizer(speech.model).sample_rate
        samples = np.clip(np.concatenate([np.zeros(0, np.float32), *parts]), -1, 1)
        return Spoken(samples, rate, " · ".join(words), usage.first_audio or 0.0, usage.total or 0.0)

    # -- codec lab ----------------------------------------------------------------------------------------------------
    async def levels(self, codec: str) -> Any:
        """The slider of a codec's codebooks."""
        try:
            most = await asyncio.to_thread(self.lab.levels, codec)
        except QuaverError as error:
            raise told(error) from None
        return gr.update(maximum=most, value=most)

    async def _code(self, recording: str | None, codec: str, codebooks: float) -> Any:
        """(original's spectrogram, decoded audio, its spectrogram, heat map, figures)."""
        if not recording:
            raise Problem("invalid_value", "record or upload something first")
        coding = await asyncio.to_thread(self.lab.run, recording, codec, int(codebooks))
        return await asyncio.to_thread(_pictures_of, coding)

    # -- edit ---------------------------------------------------------------------------------------------------------
    async def _edit(self, recording: str | None, transcript: str, old: str, new: str, model: str, seed: float) -> Any:
        """(pictures before, edited audio, pictures after, what is said now)."""
        if not recording:
            raise Problem("invalid_value", "record or upload something first")
        made = await asyncio.to_thread(self.editors.run, recording, transcript, old, new, model, int(seed))
        return await asyncio.to_thread(_rewriting, made)


def _pictures_of(coding: Coding) -> tuple[str, Any, str, str, str]:
    rate, (books, frames) = coding.sample_rate, coding.codes.shape
    rows = [
        ("Bitrate", f"{coding.bitrate / 1000:.2f} kbit/s"),
        ("Codes", f"{frames} frames of {books}, each of {coding.vocab}"),
        ("PESQ (wide band, 1.04 to 4.64)", "-" if coding.pesq is None else f"{coding.pesq:.2f}"),
        ("STOI (0 to 1)", "-" if coding.stoi is None else f"{coding.stoi:.3f}"),
    ]
    table = "| Figure | Value |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        figure(spectrogram(coding.original, rate), "Spectrogram of the recording"),
        _sound(coding.decoded, rate),
        figure(spectrogram(coding.decoded, rate), "Spectrogram of the decoded audio"),
        figure(heat_map(coding.codes, coding.vocab), "Tokens: a row for each codebook, time to the right"),
        table + "".join(f"\n\n{note}" for note in coding.notes),
    )


def _rewriting(made: Rewriting) -> tuple[str, Any, str, str]:
    edited = made.edited
    rate, (span, *_) = edited.sample_rate, edited.spans
    told = [
        f"**{edited.transcript}**",
        f"{span.old[0]:.2f} to {span.old[1]:.2f} s of the recording "
        + (f"are now {span.new[0]:.2f} to {span.new[1]:.2f} s." if span.change.new else "were cut out.")
        + " Outside the mark, samples are those that the codec gives back.",
        f"Transcript and recording agree to {edited.score:.2f} (1: perfectly).",
    ]
    before = _with_mark(made.original, rate, span.old, "the recording, what is replaced marked")
    after = _with_mark(edited.samples, rate, span.new, "the edited audio, what is new marked")
    return before, _sound(edited.samples, rate), after, "\n\n".join(told)


def _with_mark(samples: np.ndarray, rate: int, span: tuple[float, float], what: str) -> str:
    seconds = max(len(samples) / rate, 1e-9)
    begin, end = (place / seconds for place in span)
    return figure(marked(waveform(samples), begin, end), f"Waveform of {what}") + figure(
        marked(spectrogram(samples, rate), begin, end), f"Spectrogram of {what}"
    )


def _drawn(spoken: Spoken) -> str:
    pictures = figure(waveform(spoken.samples), "Waveform") + figure(
        spectrogram(spoken.samples, spoken.sample_rate), "Spectrogram"
    )
    return pictures + f"<p>{html.escape(spoken.words)}</p>"


def _sound(samples: np.ndarray, sample_rate: int) -> tuple[int, np.ndarray]:
    """As Gradio's players take it."""
    return sample_rate, np.rint(samples * 32767).astype(np.int16)


def _context(request: gr.Request) -> Context:
    """What the gate knows of the request behind an event of the page."""
    return request.request.scope["quaver"]  # type: ignore[union-attr]
