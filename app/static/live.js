// The live page: a microphone into WS /v1/realtime and its voice out, in binary frames (docs/protocol.md). A text can be
// spoken too, which needs no duplex model. No build step, nothing from elsewhere.
import { RealtimeSocket } from "./client.js";

const BLOCK_SECONDS = 0.04; // of the microphone, sent at a time
const NO_DUPLEX =
  "No duplex model is loaded, so nobody listens here. Start the server with one (--model default --model quaver-duplex). " +
  "Texts that you type are spoken all the same.";
const element = (id) => document.getElementById(id);

class Live {
  constructor() {
    const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket"); // never in a URL that a server logs
    this.talking = false; // whether a microphone is sent
    this.lines = new Map(); // of the transcript, by the id of the user's item
    this.wire = new RealtimeSocket(location.origin, {
      onVoice: (samples) => this.voice(samples),
      onEvent: (message) => this.event(message),
      onEpoch: () => this.player?.port.postMessage({ clear: true }),
      onTrip: (milliseconds) => show("trip", `${Math.round(milliseconds)} ms`),
      onDropped: () => tell("The line dropped; trying to come back ..."),
      onResumed: () => tell("Connected again."),
      onClosed: (code, reason, lost) => this.end(this.closing ? "" : lost ? "The connection was lost." : refusal(code, reason)),
    }, { ticket: once(ticket) });
  }

  get session() { return this.wire.session; }
  get token() { return this.wire.token; }
  get epoch() { return this.wire.epoch; }
  get sent() { return this.wire.sent; }
  get received() { return this.wire.received; }

  event(message) {
    const handler = {
      "response.created": () => this.response(message.response),
      "response.output_audio_transcript.delta": () => this.words(message),
      "response.done": () => this.finished(message.response),
      "input_audio_buffer.speech_started": () => this.userStarts(message),
      "input_audio_buffer.speech_stopped": () => this.userStops(message),
      "conversation.item.input_audio_transcription.delta": () => this.heard(message),
      "conversation.item.input_audio_transcription.completed": () => this.heardAll(message),
      error: () => this.refused(message.error),
    }[message.type];
    handler?.(); // others are ignored
  }

  refused(error) {
    if (error.code === "no_duplex_model") {
      this.hush();
      tell(NO_DUPLEX, true);
    } else {
      tell(error.message, true);
    }
  }

  // -- sound in -------------------------------------------------------------------------------------------------------
  async listen() {
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    this.microphone = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    this.ear = new AudioContext(); // at the device's own rate; the server resamples
    await this.ear.audioWorklet.addModule("live-worklet.js");
    this.configure();
    const block = Math.round(this.ear.sampleRate * BLOCK_SECONDS);
    const node = new AudioWorkletNode(this.ear, "microphone", { numberOfOutputs: 0, processorOptions: { block } });
    node.port.onmessage = ({ data }) => this.heardBlock(data);
    this.ear.createMediaStreamSource(this.microphone).connect(node);
    await this.ear.resume();
    this.talking = true;
  }

  configure() {
    if (!this.ear) return;
    const detection = { type: "server_vad", create_response: false, interrupt_response: element("barge").checked };
    this.wire.configure({ format: { type: "audio/pcm", rate: this.ear.sampleRate }, turn_detection: detection });
  }

  heardBlock({ samples, level }) {
    element("level").value = level;
    if (this.talking) this.wire.hear(samples);
  }

  userStarts({ item_id: item }) {
    if (!this.lines.has(item)) this.lines.set(item, wordless() ?? addLine("you", "..."));
    this.userEnded = null;
  }

  userStops({ item_id: item, audio_end_ms: end }) {
    this.userEnded = performance.now();
    const line = this.lines.get(item);
    if (line && !line.dataset.words) {
      line.textContent = `(you spoke, until ${(end / 1000).toFixed(1)} s)`;
      line.dataset.wordless = true;
    }
  }

  /** A piece of what the user says, as the model writes it down. */
  heard({ item_id: item, delta }) {
    if (!this.lines.has(item)) this.lines.set(item, addLine("you", ""));
    const line = this.lines.get(item);
    line.textContent = line.dataset.words = (line.dataset.words ?? "") + delta;
    delete line.dataset.wordless;
  }

  heardAll({ item_id: item, transcript }) {
    if (transcript && this.lines.has(item)) this.lines.get(item).textContent = transcript;
    this.lines.delete(item);
  }

  // -- sound out ------------------------------------------------------------------------------------------------------
  async open() {
    const rate = this.session.audio.output.format.rate;
    this.mouth = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
    await this.mouth.audioWorklet.addModule("live-worklet.js");
    this.player = new AudioWorkletNode(this.mouth, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.player.port.onmessage = ({ data }) => this.playing(data);
    this.player.connect(this.mouth.destination);
    await this.mouth.resume();
  }

  voice(samples) {
    this.loudest = Math.max(this.loudest ?? 0, ...samples);
    if (this.userEnded) {
      const wait = performance.now() - this.userEnded + 1000 * (this.state?.target ?? 0.06);
      show("answer", `${Math.round(wait)} ms`);
      this.userEnded = null;
    }
    this.player.port.postMessage({ samples }, [samples.buffer]);
  }

  response(response) {
    this.line = addLine("model", "");
    this.responseId = response.id;
    element("interrupt").disabled = false;
    this.player.port.postMessage({ begin: { live: this.talking && !this.typed } });
    this.acked = 0;
  }

  words({ delta }) {
    if (!this.line) return;
    this.line.textContent += delta;
    element("transcript").scrollTop = element("transcript").scrollHeight;
  }

  finished(response) {
    this.player.port.postMessage({ end: true });
    this.typed = false;
    this.responses = (this.responses ?? 0) + 1;
    if (this.line && response.status === "cancelled") this.line.classList.add("cut");
    if (this.line && !this.line.textContent) this.line.textContent = "(sound without words)";
    if (response.status === "failed") tell(response.status_details?.error?.message ?? "The answer failed.", true);
    this.line = null;
  }

  playing(state) {
    this.state = state;
    element("voice").value = state.held;
    show("buffer", `${Math.round(1000 * state.held)} of ${Math.round(1000 * state.target)} ms`);
    show("gaps", state.gaps);
    if (!state.playing && !this.line) element("interrupt").disabled = true;
    if (this.line && state.played - this.acked > 0.25) {
      this.acked = state.played;
      this.wire.played(1000 * state.played);
    }
  }

  interrupt() {
    this.player?.port.postMessage({ clear: true }); // at once; the server's epoch follows
    if (this.line) this.wire.interrupt();
  }

  say(text) {
    this.typed = true;
    addLine("you", text);
    this.wire.say(text);
  }

  // -- the end --------------------------------------------------------------------------------------------------------
  hush() {
    this.talking = false;
    this.microphone?.getTracks().forEach((track) => track.stop());
    this.ear?.close();
    this.microphone = this.ear = null;
    element("level").value = 0;
  }

  close() {
    this.closing = true;
    this.wire.close();
    this.end("");
  }

  end(why) {
    if (live !== this) return;
    live = null;
    this.closing = true;
    this.hush();
    this.mouth?.close();
    setButtons(false);
    tell(why || "Ended.", Boolean(why));
  }
}

// -- the page ---------------------------------------------------------------------------------------------------------
let live = null;
window.quaverLive = () => live;

function tell(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function show(id, text) { element(id).textContent = text; }

function addLine(who, text) {
  const line = document.createElement("li");
  line.className = who;
  line.textContent = text;
  element("transcript").append(line);
  while (element("transcript").children.length > 200) element("transcript").firstChild.remove();
  element("transcript").scrollTop = element("transcript").scrollHeight;
  return line;
}

/** The last line of the transcript, where it only says that you spoke: what follows without an answer is the same turn. */
function wordless() {
  const last = element("transcript").lastElementChild;
  return last?.dataset.wordless ? last : null;
}

function setButtons(connected) {
  element("start").disabled = connected;
  element("stop").disabled = !connected;
  element("say").disabled = false;
  if (!connected) element("interrupt").disabled = true;
}

/** A ticket is good for one connection. */
function once(ticket) {
  return () => { const given = ticket; ticket = null; return given; };
}

function refusal(code, reason) {
  const known = { 1013: "All places are taken; try again in a moment.", 1001: "The server is shutting down.",
    1006: "The server cannot be reached (or this page has no ticket for it)." };
  return known[code] ?? `The connection was closed (${reason || code}).`;
}

async function start(withMicrophone) {
  if (live) return live;
  const mine = (live = new Live());
  setButtons(true);
  tell("Connecting ...");
  try {
    const session = await mine.wire.connect();
    await mine.open();
    if (!session.capabilities.duplex) tell(NO_DUPLEX, true);
    else if (withMicrophone) {
      await mine.listen();
      tell("Connected: speak.");
    } else tell("Connected.");
    return mine;
  } catch (error) {
    const why = { NotAllowedError: "The microphone was refused; allow it for this page and start again.",
      NotFoundError: "There is no microphone; texts that you type are spoken all the same." }[error.name];
    if (mine === live && error.name === "NotFoundError") tell(why, true);
    else if (mine === live) { mine.end(why ?? error.message); mine.wire.close(); }
    return live;
  }
}

element("start").onclick = () => start(true);
element("stop").onclick = () => live?.close();
element("interrupt").onclick = () => live?.interrupt();
element("barge").onchange = () => live?.configure();
element("typed").onsubmit = async (event) => {
  event.preventDefault();
  const text = element("text").value.trim();
  if (!text) return;
  const on = await start(false);
  if (on) { element("text").value = ""; on.say(text); }
};
setButtons(false);
