// The Speak tab of the demo: audio plays while it is made; the pictures grow with it. An ES module, no build step.
import { Player, SpeechSocket, floatsOf } from "./client.js";
import { drawSpectrogram, drawWave } from "./live-pictures.js";

const AUDIBLE = 0.01; // of full scale: what is below it at the start of an answer is silence
const EDGE_SECONDS = 0.04; // of that silence are kept
const AHEAD_SECONDS = 6; // the server waits for playback when it is further ahead; the real-time factor ends there
let context = null;
let current = null;

/** What the last answer was, for whoever looks from outside (the browser tests do). */
window.quaverSpeech = null;

class Speech {
  constructor(panel, wishes) {
    Object.assign(this, { panel, wishes, rate: 24000, chunks: [], samples: 0, words: [], done: false });
    this.figures = { clicked: performance.now() };
    this.part = (name) => panel.querySelector(name);
    context ??= new AudioContext();
    context.resume();
    for (const name of ["arrived", "heard", "factor", "seconds"]) this.figure(name, "-");
    this.part(".words").replaceChildren();
    this.part(".cursor").style.display = "none";
    this.part("audio").removeAttribute("src");
    this.tell("Connecting ...");
  }

  tell(text, isError = false) {
    const line = this.part(".status");
    line.textContent = text;
    line.classList.toggle("error", isError);
  }

  figure(name, value) { this.part(`[data-figure=${name}]`).textContent = value; }

  async run() {
    const { text, model, voice, speed, seed, speculate } = this.wishes;
    if (!text?.trim()) return this.tell("Type some text first.", true);
    const before = this.drafts(model);
    this.socket = new SpeechSocket(location.origin, {
      onStart: (message) => this.start(message),
      onAudio: (bytes) => this.audio(floatsOf(bytes)),
      onWords: (message) => this.words.push(...message.words),
      onEnd: (message) => this.end(message, before),
      onError: (error) => this.fail(error.message),
      onClose: () => this.done || this.fail("The connection was lost."),
    });
    const wanted = { speed: Number(speed), seed: Number(seed) || 0, split: "sentence" };
    if (model) wanted.model = model;
    if (voice) wanted.voice = voice;
    if (speculate) wanted.speculate = true;
    this.socket.configure(wanted).catch((error) => this.fail(error.message));
    await new Promise((resolve) => this.socket.socket.addEventListener("open", resolve));
    this.socket.say(text);
    this.socket.finish();
    this.tell("Speaking ...");
  }

  start(message) {
    this.rate = message.sample_rate;
    this.player = new Player(context, this.rate, 0.03);
    this.asked = performance.now();
  }

  audio(samples) {
    if (this.done && !this.player) return;
    const now = performance.now();
    const { figures } = this;
    if (figures.arrived === undefined) {
      figures.arrived = now - figures.clicked;
      this.figure("arrived", `${Math.round(figures.arrived)} ms`);
    }
    this.play(samples, now);
    this.chunks.push(samples);
    this.samples += samples.length;
    const seconds = this.samples / this.rate;
    if (seconds - (context.currentTime - (this.began ?? context.currentTime)) < AHEAD_SECONDS && seconds > 0.2) {
      figures.factor = (now - this.asked) / 1000 / seconds;
      this.figure("factor", figures.factor.toFixed(2));
    }
    this.figure("seconds", `${seconds.toFixed(2)} s`);
    this.draw();
  }

  /** Plays a chunk. The silence at the start of an answer is left out, so that the first word comes sooner. */
  play(samples, now) {
    if (this.began !== undefined) return this.player.push(samples);
    const first = samples.findIndex((value) => Math.abs(value) > AUDIBLE);
    if (first < 0) return;
    const from = Math.max(0, first - Math.round(EDGE_SECONDS * this.rate));
    const starts = context.currentTime + this.player.lead;
    this.player.push(samples.subarray(from));
    this.began = starts - (this.samples + from) / this.rate; // when the answer would have begun with its silence
    const latency = context.outputLatency || context.baseLatency || 0;
    const wait = starts - context.currentTime + (first - from) / this.rate + latency;
    this.figures.heard = now - this.figures.clicked + 1000 * wait;
    this.figure("heard", `${Math.round(this.figures.heard)} ms`);
    requestAnimationFrame(() => this.move());
  }

  draw() {
    if (this.drawing) return; // at most once a frame of the screen, however fast chunks come
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      const whole = this.whole();
      drawWave(this.part(".wave"), whole);
      drawSpectrogram(this.part(".spectrogram"), whole, this.rate);
      this.showWords();
    });
  }

  whole() {
    const whole = new Float32Array(this.samples);
    let place = 0;
    for (const chunk of this.chunks) { whole.set(chunk, place); place += chunk.length; }
    this.chunks = [whole];
    return whole;
  }

  showWords() {
    const box = this.part(".words");
    const seconds = this.samples / this.rate;
    const free = []; // where each line is free again, in pixels
    const spans = this.words.map((word) => {
      const span = document.createElement("span");
      span.append(word.text, Object.assign(document.createElement("small"), { textContent: `${word.start.toFixed(2)} s` }));
      return span;
    });
    box.replaceChildren(...spans);
    spans.forEach((span, index) => {
      const left = (this.words[index].start / seconds) * box.clientWidth;
      const place = Math.min(left, box.clientWidth - span.offsetWidth);
      const open = free.findIndex((end) => end <= place);
      const line = open < 0 ? free.length : open;
      span.style.left = `${place}px`;
      span.style.top = `${line * 2.2}em`;
      free[line] = place + span.offsetWidth + 4;
    });
    box.style.height = `${Math.max(2, free.length) * 2.2}em`; // a phone needs more lines for the same words
  }

  /** Moves the cursor with what is heard, and tells the server, which makes more. */
  move() {
    if (current !== this || !this.player) return;
    const heard = context.currentTime - this.began;
    const cursor = this.part(".cursor");
    const seconds = this.samples / this.rate;
    const playing = heard < seconds && this.player.queued > 0;
    cursor.style.display = playing ? "block" : "none";
    cursor.style.left = `${Math.min(100, (100 * Math.max(0, heard)) / seconds)}%`;
    this.part(".words").querySelectorAll("span").forEach((span, index) => {
      const word = this.words[index];
      span.classList.toggle("now", Boolean(word) && playing && heard >= word.start && heard < word.end);
    });
    if (!this.done && heard - (this.told ?? 0) > 0.5) {
      this.told = heard;
      this.socket.played(1000 * Math.max(0, heard));
    }
    if (playing || !this.done) requestAnimationFrame(() => this.move());
  }

  async end(message, before) {
    this.done = true;
    this.figures.ended = performance.now() - this.figures.clicked;
    this.socket.close();
    if (message.status !== "completed") {
      if (!this.failed) this.tell(`Stopped after ${message.seconds.toFixed(2)} s.`);
      return;
    }
    this.part("audio").src = URL.createObjectURL(wavOf(this.whole(), this.rate));
    this.draw();
    this.tell(`Done: ${message.seconds.toFixed(2)} s of speech.`);
    const [start, stop] = await Promise.all([before, this.drafts(this.wishes.model)]);
    const judged = (stop.judged ?? 0) - (start.judged ?? 0);
    const share = judged > 0 ? `${Math.round((100 * (stop.kept - start.kept)) / judged)} %` : "off";
    this.figure("drafts", share);
  }

  async drafts(model) {
    try {
      return await (await fetch(`/demo-figures/${encodeURIComponent(model ?? "default")}`)).json();
    } catch { return {}; }
  }

  fail(message) {
    this.failed = this.done = true;
    this.player?.stop();
    this.tell(message, true);
  }

  stop() {
    if (!this.done && this.socket?.socket.readyState === 1) this.socket.cancel();
    this.player?.stop();
  }
}

/** 16-bit WAV of floats. */
function wavOf(samples, rate) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, word) => [...word].forEach((letter, i) => bytes.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF"); text(8, "WAVEfmt "); text(36, "data");
  [[4, 36 + 2 * samples.length], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * samples.length]]
    .forEach(([place, value]) => bytes.setUint32(place, value, true));
  [[20, 1], [22, 1], [32, 2], [34, 16]].forEach(([place, value]) => bytes.setUint16(place, value, true));
  samples.forEach((value, i) => bytes.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return new Blob([bytes], { type: "audio/wav" });
}

window.quaverSpeak = (wishes) => {
  current?.stop();
  current = window.quaverSpeech = new Speech(document.querySelector("#speak-panel"), wishes);
  current.run().catch((error) => current.fail(String(error.message ?? error)));
};
window.quaverStop = () => current?.stop();
