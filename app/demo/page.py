"""The demo's page: tabs, labels, and which handler each control calls."""

from __future__ import annotations

import contextlib
from typing import Any

from .handlers import COLUMNS, Handlers

with contextlib.suppress(ImportError):  # `add_demo` says what to install
    import gradio as gr

__all__ = ["HEAD", "STYLE", "build_page", "theme"]

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds."
KEPT = (300, 900)
"""Seconds: how often Gradio's uploads are looked at, and the age at which they are deleted."""
HEAD = '<script type="module" src="/static/demo.js"></script><link rel="icon" href="data:,">'
LIVE = (
    '<iframe id="live-frame" src="/static/live.html" title="Live conversation" allow="microphone; autoplay"></iframe>'
)
STYLE = """
.gradio-container { width: 100%; max-width: 1100px !important; margin: 0 auto; box-sizing: border-box; }
.gradio-container main, .gradio-container .wrap, .gradio-container .contain { width: 100%; }
.picture { margin: 0 0 8px; }
.picture figcaption { font-size: 13px; opacity: 0.85; margin-bottom: 3px; }
.picture img { display: block; width: 100%; border-radius: 6px; image-rendering: auto; }
#live-frame { width: 100%; height: 760px; border: 0; }
.speak-panel canvas { background: #8881; display: block; width: 100%; border-radius: 6px; }
.speak-panel .pictures { position: relative; display: grid; gap: 6px; }
.speak-panel .cursor { position: absolute; top: 0; bottom: 0; width: 2px; background: #e4572e; display: none; }
.speak-panel .words { position: relative; min-height: 4.4em; overflow: hidden; font-size: 13px; }
.speak-panel .words span { position: absolute; white-space: nowrap; border-left: 1px solid #8892c8; padding-left: 3px;
  line-height: 1.25; }
.speak-panel .words span small { display: block; opacity: 0.7; font-size: 10px; }
.speak-panel .words span.now { color: #c2410c; font-weight: 600; }
.speak-panel .status { min-height: 1.6em; margin: 4px 0 8px; font-weight: 600; }
.speak-panel .status.error { color: #b91c1c; }
.speak-panel dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 8px;
  margin: 10px 0; }
.speak-panel dl div { border: 1px solid #8884; border-radius: 8px; padding: 6px 10px; }
.speak-panel dt { font-size: 12px; opacity: 0.8; }
.speak-panel dd { margin: 0; font-size: 17px; font-variant-numeric: tabular-nums; }
.speak-panel audio { width: 100%; }
@media (max-width: 640px) {
  #live-frame { height: 880px; }
  .picture img { height: 84px; }
  .speak-panel .wave { height: 64px; }
  .speak-panel .spectrogram { height: 120px; }
}
.dark .speak-panel .status.error { color: #fca5a5; }
.dark .speak-panel .words span.now { color: #fdba74; }
"""
# The panel is a server-rendered skeleton; app/static/demo.js fills it while audio arrives.
PANEL = """
<div class="speak-panel" id="speak-panel">
  <p class="status" role="status" aria-live="polite">Ready.</p>
  <div class="pictures">
    <canvas class="wave" width="1000" height="110" role="img" aria-label="Waveform of the speech"></canvas>
    <canvas class="spectrogram" width="1000" height="180" role="img" aria-label="Spectrogram of the speech"></canvas>
    <div class="words" aria-label="Words and the seconds at which they begin"></div>
    <div class="cursor"></div>
  </div>
  <dl>
    <div><dt>First audio arrived after</dt><dd data-figure="arrived">-</dd></div>
    <div><dt>First sound heard after</dt><dd data-figure="heard">-</dd></div>
    <div><dt>Real-time factor</dt><dd data-figure="factor">-</dd></div>
    <div><dt>Speech</dt><dd data-figure="seconds">-</dd></div>
    <div><dt>Accepted drafts</dt><dd data-figure="drafts">off</dd></div>
  </dl>
  <audio controls aria-label="The whole speech"></audio>
</div>
"""


def theme() -> gr.Theme:
    """Gradio's own look with the fonts of the visitor's machine: nothing is fetched from elsewhere."""
    sans = ("ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Soft(font=sans, font_mono=("ui-monospace", "monospace"))


def build_page(do: Handlers) -> gr.Blocks:
    """All tabs. Menus of models and voices are filled when the page loads, since models load after it is built."""
    with gr.Blocks(title="quaver", analytics_enabled=False, delete_cache=KEPT) as page:
        gr.Markdown("# quaver\nSpeech from text, voices from recordings, audio into tokens: on this machine.")
        with gr.Tabs():
            with gr.Tab("Speak", id="speak"):
                model, voice = _speak(do)
            with gr.Tab("Clone", id="clone"):
                cloner, note = _clone(do, model, voice)
            with gr.Tab("Codec lab", id="codec"):
                _codec(do)
            with gr.Tab("Compare", id="compare"):
                chosen = _compare(do)
            with gr.Tab("Edit", id="edit"):
                _edit(do)
            with gr.Tab("Converse", id="converse"):
                gr.HTML(LIVE)

        def fill(request: gr.Request) -> list[Any]:
            models, able = do.models(), do.cloners()
            first = models[0] if models else None
            return [
                gr.update(choices=models, value=first),
                do.voices(first, request),
                gr.update(choices=able, value=able[0] if able else None, interactive=bool(able)),
                _about_cloning(able, models),
                gr.update(choices=models, value=models[:COLUMNS]),
            ]

        page.load(fill, None, [model, voice, cloner, note, chosen], show_progress="hidden", api_visibility="private")
    page.queue(max_size=16, default_concurrency_limit=2)
    return page


def _speak(do: Handlers) -> tuple[gr.Dropdown, gr.Dropdown]:
    text = gr.Textbox(TEXT, label="Text", lines=3, max_lines=8, max_length=4096, elem_id="speak-text")
    with gr.Row():
        model = gr.Dropdown([], label="Model", elem_id="speak-model", min_width=150)
        voice = gr.Dropdown([], label="Voice", elem_id="speak-voice", min_width=150)
        speed = gr.Slider(0.5, 2.0, 1.0, step=0.05, label="Speed", min_width=150)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
    speculate = gr.Checkbox(False, label="Speculate, if the model has a drafter", elem_id="speak-speculate")
    with gr.Row():
        speak = gr.Button("Speak", variant="primary", elem_id="speak-button", min_width=120)
        stop = gr.Button("Stop", elem_id="speak-stop", min_width=120)
    gr.HTML(PANEL)
    # The browser itself talks to WS /v1/audio/speech/stream: audio plays as it is made, without Gradio's queue.
    names = "text, model, voice, speed, seed, speculate"
    call = f"({names}) => {{ window.quaverSpeak({{{names}}}); }}"
    inputs = [text, model, voice, speed, seed, speculate]
    speak.click(None, inputs, None, js=call, api_visibility="private")
    stop.click(None, None, None, js="() => { window.quaverStop(); }", api_visibility="private")
    model.input(do.voices, model, voice, show_progress="hidden", api_visibility="private")
    return model, voice


def _clone(do: Handlers, speaker: gr.Dropdown, voice: gr.Dropdown) -> tuple[gr.Dropdown, gr.Markdown]:
    """`speaker`, `voice`: the menus of Speak, where a new voice appears."""
    note = gr.Markdown("", elem_id="clone-note")
    recording = _recorder("One speaker, 1 to 30 s")
    with gr.Row():
        name = gr.Textbox("", label="Name of the voice", max_length=80, min_width=160, elem_id="clone-name")
        model = gr.Dropdown([], label="Model that imitates", min_width=160)
    text = gr.Textbox("", label="What is said in the recording (optional; brings the voice closer)", max_length=2000)
    consent = gr.Checkbox(False, label="The person who speaks has agreed to this", elem_id="clone-consent")
    make = gr.Button("Make the voice", variant="primary", elem_id="clone-button")
    message = gr.Markdown("", elem_id="clone-message")
    file = gr.DownloadButton("Save the voice file", visible=False, elem_id="clone-file")
    made = make.click(
        do.add_voice,
        [recording, name, text, consent, model],
        [message, file],
        concurrency_limit=1,
        api_visibility="private",
    )
    made.success(do.voices, speaker, voice, show_progress="hidden", api_visibility="private")
    return model, note


def _recorder(label: str) -> gr.Audio:
    return gr.Audio(sources=["upload", "microphone"], type="filepath", label=label, buttons=["download"])


def _about_cloning(able: list[str], models: list[str]) -> str:
    if able:
        return f"Imitates a speaker: {', '.join(able)}. The recording itself is deleted within minutes."
    return (
        f"**No loaded model can imitate a speaker** ({', '.join(models) or 'none is loaded'}). Start the demo with a "
        "token model that has a flow: `quaver demo --model FOLDER` (docs/voices.md)."
    )


def _codec(do: Handlers) -> None:
    names = list(do.lab.names)
    if not names:
        gr.Markdown("**No codec is here.** Start the demo with one: `quaver demo --codec FOLDER`.")
        return
    most = do.lab.levels(names[0])
    recording = _recorder("Recording, up to 30 s")
    with gr.Row():
        codec = gr.Dropdown([(do.lab.short(n), n) for n in names], value=names[0], label="Codec", min_width=160)
        levels = gr.Slider(1, most, most, step=1, label="Codebooks", min_width=200, elem_id="codec-levels")
    run = gr.Button("Encode and decode", variant="primary", elem_id="codec-button")
    with gr.Row():
        with gr.Column(min_width=300):
            before = gr.HTML()
        with gr.Column(min_width=300):
            after = gr.HTML()
    sound = gr.Audio(label="Decoded audio", interactive=False, buttons=["download"], elem_id="codec-sound")
    tokens = gr.HTML()
    figures = gr.Markdown("", elem_id="codec-figures")
    outputs = [before, sound, after, tokens, figures]
    for trigger in (run.click, levels.release):
        trigger(
            do.code,
            [recording, codec, levels],
            outputs,
            concurrency_limit=1,
            concurrency_id="codec",
            trigger_mode="always_last" if trigger is levels.release else "once",
            api_visibility="private",
        )
    codec.input(do.levels, codec, levels, show_progress="hidden", api_visibility="private")


def _edit(do: Handlers) -> None:
    names = list(do.editors.names)
    if not names:
        gr.Markdown(
            "**No model that edits speech is loaded.** Start the demo with one, trained with `recipes/ardit.yaml`: "
            "`quaver demo --editor FOLDER` (docs/editing.md)."
        )
        return
    recording = _recorder("Recording, up to 30 s")
    transcript = gr.Textbox("", label="What is said in it, word by word", max_length=2000, elem_id="edit-transcript")
    with gr.Row():
        old = gr.Textbox("", label="Replace these words", max_length=500, min_width=200, elem_id="edit-old")
        new = gr.Textbox("", label="by these (empty: cut out)", max_length=500, min_width=200, elem_id="edit-new")
    with gr.Row():
        choices = [(do.editors.short(n), n) for n in names]
        model = gr.Dropdown(choices, value=names[0], label="Model", min_width=160)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
    run = gr.Button("Edit", variant="primary", elem_id="edit-button")
    told = gr.Markdown("", elem_id="edit-told")
    before = gr.HTML()
    sound = gr.Audio(label="Edited audio", interactive=False, buttons=["download"], elem_id="edit-sound")
    after = gr.HTML()
    run.click(
        do.edit,
        [recording, transcript, old, new, model, seed],
        [before, sound, after, told],
        concurrency_limit=1,
        api_visibility="private",
    )


def _compare(do: Handlers) -> gr.CheckboxGroup:
    text = gr.Textbox(TEXT, label="Text", lines=2, max_length=4096, elem_id="compare-text")
    with gr.Row():
        chosen = gr.CheckboxGroup([], label=f"Models (up to {COLUMNS})", min_width=200)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100)
    run = gr.Button("Compare", variant="primary", elem_id="compare-button")
    cells: list[Any] = []
    with gr.Row():
        for place in range(COLUMNS):
            with gr.Column(min_width=260, visible=False, elem_id=f"compare-{place}") as column:
                about = gr.Markdown("")
                sound = gr.Audio(label=f"Speech {place + 1}", interactive=False, buttons=["download"])
                cells += [column, about, sound, gr.HTML()]
    run.click(do.compare, [text, chosen, seed], cells, concurrency_limit=2, api_visibility="private")
    return chosen
