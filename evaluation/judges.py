"""The listeners: networks that hear a recording and say what was spoken, how well, and by whom.

Each is loaded once, at first use, with as many threads as the run allows, and its cost is kept (`Judges.seconds`).
"""

from __future__ import annotations

import contextlib
import io
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import BadInput, MissingExtra, MissingFile
from .signals import RATE, resample

__all__ = ["Judges", "PhoneRecognizer", "installed"]

PHONE_RATE = 24_000
ASR_PRECISION = "int8"  # 1.8x as fast as float32 on a CPU, with the same transcripts (docs/evaluation.md)


class PhoneRecognizer(Protocol):
    """What a phone error rate needs: float32 [sample] at 24 kHz -> phone symbols."""

    def transcribe(self, audio: np.ndarray) -> list[str]: ...


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


class Judges:
    """All judges of one run.

    Arguments:
        asr: folder of a faster-whisper model, or its hub name; None leaves word error rates out.
        phones: a phone recogniser, or the name or folder of one of ours ("semantic-25hz").
        threads: of every judge.

    Attributes:
        seconds: judge -> wall seconds spent, loading apart ("load NAME"); calls: judge -> number of calls.
    """

    def __init__(
        self, asr: str | None = None, phones: PhoneRecognizer | str | None = "semantic-25hz", *, threads: int = 1
    ) -> None:
        self.asr = asr
        self.phones = phones
        self.threads = threads
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall time of its block to `seconds[name]`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
            self.calls[name] += 1

    def transcribe(self, audio: np.ndarray) -> str:
        """What Whisper hears in float32 [sample] at 16 kHz.

        Greedy fallback is off (temperature 0 only) and no window sees the text of the one before it: a judge must not
        sample, nor guess a lost sentence from its context.
        """
        model = self._whisper
        with self.timed("asr"):
            segments, _ = model.transcribe(
                audio, language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False
            )
            return " ".join(segment.text.strip() for segment in segments)

    def transcribe_phones(self, audio: np.ndarray, sample_rate: int) -> list[str]:
        """Phones that our recogniser hears, without pauses and stress; any rate."""
        recognizer = self._recognizer
        with self.timed("phones"):
            return recognizer.transcribe(resample(audio, sample_rate, PHONE_RATE))

    def dnsmos(self, audio: np.ndarray) -> dict[str, float]:
        """DNSMOS P.835 overall and P.808 (Reddy et al. 2022) of float32 [sample] at 16 kHz."""
        model = self._dnsmos
        with self.timed("dnsmos"):
            scores = model(audio, RATE, False)
        return {"dnsmos": float(scores["ovrl_mos"]), "p808": float(scores["p808_mos"])}

    def distillmos(self, audio: np.ndarray) -> float:
        """DistillMOS (Stahl & Gamper 2025) of float32 [sample] at 16 kHz."""
        import torch

        model = self._distillmos
        with self.timed("distillmos"), torch.inference_mode():
            return float(model(torch.from_numpy(audio)[None]))

    def embedding(self, audio: np.ndarray) -> np.ndarray:
        """Unit vector [256] of who speaks (Resemblyzer, GE2E; Wan et al. 2018); float32 [sample] at 16 kHz."""
        import resemblyzer

        model = self._speaker
        with self.timed("similarity"):
            return model.embed_utterance(resemblyzer.preprocess_wav(audio, RATE))

    def load_asr(self) -> None:
        """Loads the recogniser now. Raises MissingExtra, MissingFile or BadInput if that fails."""
        _ = self._whisper

    def load_phones(self) -> None:
        """Loads the phone recogniser now. Raises MissingFile or BadInput if that fails."""
        _ = self._recognizer

    @cached_property
    def _whisper(self) -> Any:
        if self.asr is None:
            raise BadInput("no recogniser was named: give --asr with a faster-whisper folder or hub name")
        faster_whisper = _need("faster_whisper", "word error rates need faster-whisper")
        name = str(Path(self.asr).expanduser()) if _is_path(self.asr) else self.asr
        if _is_path(self.asr) and not (Path(name) / "model.bin").exists():
            raise MissingFile(f"{self.asr} holds no faster-whisper model (model.bin); check --asr or fetch one first")
        try:
            with self.timed("load asr"):
                return faster_whisper.WhisperModel(
                    name, device="cpu", compute_type=ASR_PRECISION, cpu_threads=self.threads, num_workers=1
                )
        except (OSError, ValueError, RuntimeError) as error:  # the hub, its cache and CTranslate2 each raise their own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise MissingFile(f"the recogniser {self.asr} cannot be loaded ({reason}); give --asr a folder") from None

    @cached_property
    def _recognizer(self) -> PhoneRecognizer:
        if not isinstance(self.phones, str):
            if self.phones is None:
                raise BadInput("no phone recogniser was named")
            return self.phones
        with self.timed("load phones"):
            return _OwnRecognizer(self.phones)

    @cached_property
    def _dnsmos(self) -> Any:
        module = _need("speechmos.dnsmos", "DNSMOS needs speechmos")
        import onnxruntime

        folder = Path(module.__file__).parent / "dnsmos_models"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        # The package's own constructor takes no session options and would use every core.
        judge = module.DNSMOS.__new__(module.DNSMOS)
        providers = ["CPUExecutionProvider"]
        with self.timed("load dnsmos"):
            judge.onnx_sess = onnxruntime.InferenceSession(folder / "sig_bak_ovr.onnx", options, providers=providers)
            judge.p808_onnx_sess = onnxruntime.InferenceSession(folder / "model_v8.onnx", options, providers=providers)
        return judge

    @cached_property
    def _distillmos(self) -> Any:
        module = _need("distillmos", "DistillMOS needs distillmos")
        # It prints where its weights lie.
        with self.timed("load distillmos"), contextlib.redirect_stdout(io.StringIO()):
            return module.ConvTransformerSQAModel().eval()

    @cached_property
    def _speaker(self) -> Any:
        module = _need("resemblyzer", "speaker similarity needs resemblyzer")
        with self.timed("load similarity"):
            return module.VoiceEncoder("cpu", verbose=False)


class _OwnRecognizer:
    """Our CTC network as a PhoneRecognizer."""

    def __init__(self, name: str) -> None:
        from ..codecs.loading import load_semantic
        from ..tts.phones import CONSONANTS, VOWELS

        self._model = load_semantic(name)
        self._speech = frozenset((*CONSONANTS, *VOWELS))

    def transcribe(self, audio: np.ndarray) -> list[str]:
        import torch

        heard = self._model.transcribe(torch.from_numpy(audio)[None, None])[0]
        return [symbol for symbol in heard if symbol in self._speech]


def _need(package: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtra(f"{what}: pip install 'quaver[eval]'") from None


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists() or name.count("/") > 1
