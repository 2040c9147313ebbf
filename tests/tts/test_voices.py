"""Voices: what a reference may be, what a voice file holds, and that it changes who is heard, not what is said."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from quaver.codecs.mel import MelCodec, MelConfig
from quaver.codecs.semantic import SemanticConfig, SemanticTokenizer
from quaver.errors import BadInput, ConfigError, CorruptFile, MissingFile
from quaver.tts.flow_sound import FlowSound, load_sound, tokens_of
from quaver.tts.generate import Generation
from quaver.tts.guidance import GuidedLM
from quaver.tts.speaker import SpeakerEncoder
from quaver.tts.token_plan import TokenPlan, TokenRequest, WarmClip
from quaver.tts.token_synthesizer import TokenSynthesizer, TokenVoiceSettings
from quaver.tts.voices import Voice, dump_voice, load_voice, reference_clip, unknown_voice

from ..laws import few, randn, randomised
from .test_flow import MEL, flow_model
from .test_token_synthesizer import folder
from .tokens import token_lm

SIZES = {"mels": 8, "width": 8, "hidden": 12, "levels": (3, 3, 3), "n_fft": 960, "hop": 240}
BLOCKS = {"low_blocks": 1, "middle_blocks": 1, "upper_blocks": 1}


def tokenizer() -> SemanticTokenizer:
    torch.manual_seed(3)
    return SemanticTokenizer(SemanticConfig.model_validate({**SIZES, **BLOCKS})).eval()


def vocoder() -> MelCodec:
    torch.manual_seed(1)
    return randomised(MelCodec(MelConfig.model_validate({**MEL, "hop": 240, "n_fft": 960, "head": "istft"})), scale=0.1)


def sound(vector: int = 6) -> FlowSound:
    made = FlowSound(flow_model(vector=vector, patch=4), vocoder(), codec="tokens", identity="ab" * 32)
    made.use(tokenizer())
    return made


def speech(seconds: float, seed: int = 0, level: float = 0.2) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * 24_000))).astype(np.float32)


SOUND = sound()
VOICE = SOUND.describe(speech(1.5), name="mine", text="hello there")


# -- the reference ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "level", "text", "words"),
    [
        (0.2, 0.2, "", "0.2 s"),
        (601, 0.2, "", "10 minutes"),
        (3, 0.0, "", "silent"),
        (3, 1e-5, "", "silent"),
        (12, 0.2, "much too long", "transcript"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(seconds: float, level: float, text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        reference_clip(speech(seconds, level=level), 24_000, text)


def test_silence_is_cut_and_the_fullest_ten_seconds_are_kept() -> None:
    quiet = np.zeros(24_000, np.float32)
    clip = reference_clip(np.concatenate([quiet, speech(2), quiet]), 24_000)
    assert 2.0 <= len(clip) / 24_000 <= 2.3
    long = np.concatenate([speech(1, level=0.1), np.tile(quiet, 10), speech(30, seed=1), np.tile(quiet, 10)])
    clip = reference_clip(long, 24_000)
    assert len(clip) == 240_000
    assert np.abs(clip).reshape(-1, 2400).max(1).min() > 0.1  # no silence in it
    with pytest.raises(BadInput, match="holds only"):
        reference_clip(np.concatenate([quiet, speech(0.27), quiet]), 24_000)


def test_ten_minutes_are_a_reference_and_a_moment_more_is_none() -> None:
    ten = np.tile(speech(6), 100)
    assert len(reference_clip(ten, 24_000)) == 240_000
    with pytest.raises(BadInput, match="10 minutes"):
        reference_clip(np.append(ten, np.float32(0.1)), 24_000)


# -- the file ---------------------------------------------------------------------------------------------------------
def test_a_voice_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "my.voice"
    path.write_bytes(dump_voice(VOICE))
    back = load_voice(path)
    assert (back.name, back.text, back.flow, back.codec) == ("mine", "hello there", "ab" * 32, "tokens")
    assert torch.equal(back.tokens, VOICE.tokens)
    assert torch.equal(back.mel, VOICE.mel)
    assert VOICE.vector is not None
    assert back.vector is not None
    assert torch.equal(back.vector, VOICE.vector)
    path.write_bytes(dump_voice(replace(VOICE, vector=None)))
    assert load_voice(path).vector is None


@few
@given(cut=st.integers(0, 3000))
def test_a_damaged_voice_file_is_said_to_be_one(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("v") / "cut.voice"
    content = dump_voice(VOICE)
    path.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(CorruptFile, match="voice create"):
        load_voice(path)


def test_what_is_no_voice_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="voice create"):
        load_voice(tmp_path / "none.voice")
    save_file({"tokens": torch.zeros(1, 3)}, tmp_path / "other.voice")
    with pytest.raises(CorruptFile, match="not a voice file of this version"):
        load_voice(tmp_path / "other.voice")
    for wrong in (replace(VOICE, mel=VOICE.mel[:, 1:]), replace(VOICE, mel=VOICE.mel * torch.nan)):
        (tmp_path / "bad.voice").write_bytes(dump_voice(wrong))
        with pytest.raises(CorruptFile, match="damaged"):
            load_voice(tmp_path / "bad.voice")


def test_a_voice_that_is_misspelt_lists_near_names() -> None:
    names = ["am_michael", "af_heart", "bf_emma"]
    assert "did you mean am_michael?" in str(unknown_voice("Michael", names))
    assert "choose one of am_michael, af_heart, bf_emma" in str(unknown_voice("zzz", names))


# -- speaking and converting ------------------------------------------------------------------------------------------
def spoken(voice: Voice | str, **settings: object) -> np.ndarray:
    synthesizer = TokenSynthesizer(token_lm("cosyvoice2"), SOUND, TokenVoiceSettings())
    return synthesizer.say("Hello there.", voice=voice, **settings)


def test_a_voice_speaks_and_its_vector_and_prompt_matter() -> None:
    plain = replace(VOICE, text="")
    own = spoken(plain)
    assert np.isfinite(own).all()
    assert len(own) == len(spoken("a"))  # without a transcript the language model does not hear of it
    assert np.array_equal(own, spoken(plain))
    assert VOICE.vector is not None
    for other in (replace(plain, vector=-VOICE.vector), replace(plain, mel=VOICE.mel + 0.5)):
        assert np.abs(own - spoken(other)).max() > 1e-6


def test_a_transcript_lets_the_language_model_hear_the_voice() -> None:
    lm = token_lm("cosyvoice2")
    synthesizer = TokenSynthesizer(lm, SOUND, TokenVoiceSettings())
    short = replace(VOICE, tokens=VOICE.tokens[:, :12], mel=VOICE.mel[:, :48], text="hi")
    carry, clip = synthesizer._context(short, {}, True)
    assert carry.prompt is not None
    assert clip is not None
    assert len(carry.ids) > 0
    assert not np.array_equal(
        synthesizer.say("Hello.", voice=short), synthesizer.say("Hello.", voice=replace(short, text=""))
    )
    prefix = TokenSynthesizer(token_lm("cosyvoice"), SOUND, TokenVoiceSettings())
    long = replace(VOICE, text="hello there " * 20)  # does not leave half of the tiny model's positions free
    carry, clip = prefix._context(long, {}, True)
    assert (carry.ids, carry.prompt, clip) == ((), None, None)


def test_the_length_guard_does_not_count_the_transcript() -> None:
    lm = token_lm("cosyvoice2")
    prompt = torch.zeros(1, 12, dtype=torch.long)
    told = TokenPlan(TokenRequest((*range(5, 15), 7, 8, 9), prompt=prompt, given=10), lm)
    plain = TokenPlan(TokenRequest((7, 8, 9)), lm)
    assert (told.least, told.most) == (plain.least, plain.most)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("system", ["cosyvoice", "cosyvoice2", "koel"])
def test_a_clip_is_run_once_and_changes_nothing(system: str, guidance: float) -> None:
    """The language model's state after the clip is kept: fewer positions, the same speech."""
    lm, ran = token_lm(system), []
    model = GuidedLM(lm) if guidance != 1 else lm
    prompt = torch.randint(0, 12, (lm.config.codebooks, 9), generator=torch.Generator().manual_seed(3))
    clip = WarmClip(7, 9)

    def codes(clip: WarmClip | None, seed: int, own: tuple[int, ...]) -> tuple[list[list[int]], int]:
        ran.clear()
        generation, frames = Generation(model), []
        text = (4, 9, 2, 30, 7, 5, 6, *own)
        request = TokenRequest(text, prompt=prompt, given=7, clip=clip, least=9, most=12, seed=seed, guidance=guidance)
        plan = generation.join(0, request)
        while not plan.done:
            frames += [f.codes.tolist() for f in generation.tick().values()]
        return frames, sum(ran)

    hook = lm.backbone.register_forward_pre_hook(lambda module, inputs: ran.append(inputs[0].shape[1]))
    for seed, own in enumerate([(3, 8, 11, 2), (9, 9, 1), (17, 2, 5, 5, 6)]):
        fresh, all_ = codes(None, seed, own)
        kept, fewer = codes(clip, seed, own)
        assert kept == fresh
        wanted = 0 if seed == 0 else clip.positions(lm, 1 + bool(lm.config.voices)) * (2 if guidance != 1 else 1)
        assert all_ - fewer == wanted
    hook.remove()
    assert (clip.positions(lm, 1) > 0) == (system != "koel")


def test_a_prompt_is_run_once_for_all_answers() -> None:
    """The flow's state after a voice's clip is kept: the next answer's first audio does not wait for it."""
    flow, ran = SOUND.flow, []
    hook = flow.backbone.register_forward_pre_hook(lambda module, inputs: ran.append(inputs[0].shape[1]))
    fresh = FlowSound(flow, SOUND.vocoder)
    codes = torch.arange(12)[None] % 27
    first = fresh.decoder(replace(VOICE, flow=""), 5)
    cold, audio = len(ran), first.push(codes, final=True)
    ran.clear()
    second = fresh.decoder(replace(VOICE, flow=""), 5)
    assert cold > 0
    assert len(ran) == 0
    assert np.array_equal(second.push(codes, final=True), audio)
    third = fresh.decoder(replace(VOICE, flow="", mel=VOICE.mel + 0.5), 5)
    assert len(ran) > 0
    assert not np.array_equal(third.push(codes, final=True), audio)
    hook.remove()


@pytest.fixture
def models_and_voice(tmp_path: Path) -> Path:
    """A language model, its flow, vocoder and tokenizer, and a voice file, side by side."""
    folder(tmp_path / "flow", "flow", SOUND.flow, codec="tokens")
    folder(tmp_path / "mel-vocoder", "mel", SOUND.vocoder)
    folder(tmp_path / "tokens", "semantic", tokenizer())
    folder(tmp_path / "lm", "token_lm", token_lm("cosyvoice2"), codec="tokens")
    (tmp_path / "lm" / "settings.json").write_text('{"flow": "flow", "vocoder": "mel-vocoder"}')
    voice = load_sound(str(tmp_path / "flow")).describe(speech(1.5), name="mine", text="hi")
    (tmp_path / "mine.voice").write_bytes(dump_voice(voice))
    return tmp_path


def test_a_voice_speaks_the_same_after_everything_was_saved_and_loaded(models_and_voice: Path) -> None:
    first = TokenSynthesizer.load(str(models_and_voice / "lm"))
    assert isinstance(first.sound, FlowSound)
    voice = first.sound.describe(speech(1.5), name="mine", text="hi")
    again = TokenSynthesizer.load(str(models_and_voice / "lm"))
    said = again.say("Go on.", voice=load_voice(models_and_voice / "mine.voice"), seed=3)
    assert np.array_equal(said, first.say("Go on.", voice=voice, seed=3))


def test_a_voice_speaks_the_same_in_another_process(models_and_voice: Path) -> None:
    """fish-speech issue 1120: a saved voice sounded otherwise after a restart."""
    where = models_and_voice
    code = (
        "import hashlib, sys, torch; torch.set_num_threads(1); "
        "from quaver.tts.token_synthesizer import TokenSynthesizer; from quaver.tts.voices import load_voice; "
        "said = TokenSynthesizer.load(sys.argv[1]).say('Go on.', voice=load_voice(sys.argv[2]), seed=3); "
        "sys.stdout.write(hashlib.sha256(said.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(where / "lm"), str(where / "mine.voice")]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        voice = load_voice(where / "mine.voice")
        said = TokenSynthesizer.load(str(where / "lm")).say("Go on.", voice=voice, seed=3)
    finally:
        torch.set_num_threads(threads)
    assert hashlib.sha256(said.tobytes()).hexdigest() == other


def test_a_voice_of_another_model_is_refused() -> None:
    with pytest.raises(BadInput, match="another flow"):
        spoken(replace(VOICE, flow="cd" * 32))
    with pytest.raises(BadInput, match="vector of 5"):
        spoken(replace(VOICE, vector=torch.ones(5)))
    with pytest.raises(BadInput, match="no flow"):
        from quaver.codecs.native import XCodec, XCodecConfig

        from .conftest import CODEC

        codec = XCodec(XCodecConfig.model_validate(CODEC)).eval()
        TokenSynthesizer(token_lm("koel"), codec, TokenVoiceSettings()).say("Hi.", voice=VOICE)


def test_conversion_keeps_the_length_and_changes_the_voice() -> None:
    source = speech(0.31, seed=4)
    a, b = (np.concatenate(list(SOUND.convert(source, voice))) for voice in ("a", VOICE))
    assert len(a) == len(b) == len(source)
    assert np.abs(a - b).max() > 1e-6
    assert np.array_equal(a, np.concatenate(list(SOUND.convert(source, "a"))))
    with pytest.raises(BadInput, match="no voice"):
        SOUND.convert(source, "aa")
    with pytest.raises(BadInput, match="no samples"):
        SOUND.convert(source[:0], "a")


def test_tokens_by_windows_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quaver.tts.flow_sound.WINDOW", 3.0)
    monkeypatch.setattr("quaver.tts.flow_sound.MARGIN", 2.0)
    net, audio = tokenizer(), speech(10)
    whole = net.encode(torch.from_numpy(audio)[None, None])[0][0]
    parts = list(tokens_of(net, audio))
    assert len(parts) == 4
    assert torch.equal(torch.cat(parts, -1), whole)


def test_a_flow_without_an_encoder_imitates_by_prompt_alone() -> None:
    bare = sound(vector=0)
    voice = bare.describe(speech(1.2))
    assert voice.vector is None
    assert len(np.concatenate(list(bare.convert(speech(0.2), voice)))) == 4800


# -- the encoder ------------------------------------------------------------------------------------------------------
def test_speaker_vectors_are_of_unit_length_and_padding_does_not_enter_them() -> None:
    encoder = randomised(SpeakerEncoder(8, 6, width=8), scale=0.2)
    mel = randn(2, 8, 41)
    with torch.no_grad():
        both = encoder(mel, torch.tensor([41, 22]))
        alone = encoder(mel[1:, :, :22], torch.tensor([22]))
    assert torch.allclose(both.norm(dim=-1), torch.ones(2))
    assert torch.allclose(both[1], alone[0], atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


# -- folders ----------------------------------------------------------------------------------------------------------
def test_a_flow_is_loaded_with_its_vocoder_and_tokenizer(tmp_path: Path) -> None:
    folder(tmp_path / "flow", "flow", SOUND.flow, codec="tokens")
    folder(tmp_path / "mel-vocoder", "mel", SOUND.vocoder)
    folder(tmp_path / "tokens", "semantic", tokenizer())
    loaded = load_sound(str(tmp_path / "flow"))
    voice = loaded.describe(speech(1.5), text="hello there")
    assert torch.equal(voice.tokens, VOICE.tokens)
    assert len(voice.flow) == 64
    folder(tmp_path / "lm", "token_lm", token_lm("cosyvoice2"), codec="tokens")
    with pytest.raises(ConfigError, match="no flow"):
        load_sound(str(tmp_path / "lm"))
    (tmp_path / "lm" / "settings.json").write_text('{"flow": "flow", "vocoder": "mel-vocoder"}')
    assert load_sound(str(tmp_path / "lm")).identity == loaded.identity
    wrong = FlowSound(flow_model(patch=3), vocoder(), codec="tokens")
    with pytest.raises(ConfigError, match="lasts 960 samples"):
        wrong.use(tokenizer())
