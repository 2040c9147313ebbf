// The live page: a microphone into WS /v1/realtime and its voice out, in binary frames (docs/protocol.md). A text can be
// spoken too, which needs no duplex model. No build step, nothing from elsewhere.
import { Codec, Flag, Kind, SUBPROTOCOL, floatsOf, packFrame, unpackFrame } from "./client.js";

const BLOCK_SECONDS = 0.04; // of the microphone, sent at a time
const NO_DUPLEX =
  "No duplex model is loaded, so nobody listens here. Start the server with one (--model runs/quaver-duplex, trained with " +
  "recipes/duplex-cpu.yaml). Texts that you type are spoken all the same.";
const element = (id) => document.getElementById(id);

class Live {
  constructor() {
    Object.assign(this, { seq: 0, lastEvent: 0, epoch: 0, sent: 0, received: 0, closing: false, streams: new Map() });
    this.talking = false; // whether a microphone is sent
  }

  // -- the socket -----------------------------------------------------------------------------------------------------
  async connect() {
    const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket"); // never in a URL that a server logs
    const place = new URL("/v1/realtime", location.href.replace(/^http/, "ws"));
    place.hash = "";
    const protocols = ticket ? [SUBPROTOCOL, `openai-insecure-api-key.${ticket}`] : [SUBPROTOCOL];
    this.socket = new WebSocket(place, protocols);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => (typeof data === "string" ? this.event(JSON.parse(data)) : this.frame(data));
    this.socket.onclose = ({ code, reason }) => this.closed(code, reason);
    this.created = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    return this.created;
  }

  send(message) {
    if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(message));
  }

  event(message) {
    if (message.server_event_seq) this.lastEvent = message.server_event_seq;
    if (message.epoch > this.epoch) this.interrupted(message.epoch);
    const handler = {
      "session.created": () => this.begin(message.session),
      "session.resumed": () => this.resumed(message),
      "session.heartbeat": () => show("trip", `${Math.round(performance.now() - this.beat)} ms`),
      "response.created": () => this.response(message.response),
      "response.output_audio_transcript.delta": () => this.words(message),
      "response.done": () => this.finished(message.response),
      "input_audio_buffer.speech_started": () => this.userStarts(),
      "input_audio_buffer.speech_stopped": () => this.userStops(message),
      "conversation.item.input_audio_transcription.delta": () => this.heard(message.delta),
      error: () => this.refused(message.error),
    }[message.type];
    handler?.(); // others are ignored
  }

  begin(session) {
    if (this.resuming) return; // the fresh session that a resume leaves behind
    this.session = session;
    this.token = session.resume_token;
    this.grace = session.disconnect_grace_s;
    this.resolve(session);
  }

  closed(code, reason) {
    clearInterval(this.beats);
    this.reject?.(new Error(refusal(code, reason)));
    if (!this.closing && this.token && this.grace > 0 && (code === 1006 || code === 1001) && !this.lost) {
      this.resume();
    } else {
      this.end(this.closing ? "" : refusal(code, reason));
    }
  }

  /** After a dropped line: the same session again, from the last event that arrived. */
  async resume() {
    this.resuming = true;
    tell("The line dropped; trying to come back ...");
    const until = performance.now() + 1000 * this.grace;
    while (performance.now() < until && !this.closing) {
      try {
        const socket = new WebSocket(this.socket.url, [SUBPROTOCOL]);
        socket.binaryType = "arraybuffer";
        await new Promise((resolve, reject) => Object.assign(socket, { onopen: resolve, onerror: reject }));
        this.socket = socket;
        socket.onmessage = ({ data }) => (typeof data === "string" ? this.event(JSON.parse(data)) : this.frame(data));
        socket.onclose = ({ code, reason }) => this.closed(code, reason);
        this.send({ type: "session.resume", resume_token: this.token, last_seq: this.lastEvent });
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
    }
    this.lost = true;
    this.end("The connection was lost.");
  }

  resumed(message) {
    this.resuming = false;
    this.token = message.resume_token;
    this.heartbeat();
    tell("Connected again.");
  }

  heartbeat() {
    this.beats = setInterval(() => {
      this.beat = performance.now();
      this.send({ type: "session.heartbeat" });
    }, 2000);
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
    const input = { format: { type: "audio/pcm", rate: this.ear.sampleRate }, turn_detection: detection };
    this.send({ type: "session.update", session: { type: "realtime", audio: { input } } });
  }

  heardBlock({ samples, level }) {
    element("level").value = level;
    if (!this.talking || this.socket.readyState !== 1 || this.resuming) return;
    const payload = new Uint8Array(samples.buffer);
    const head = { kind: Kind.audioIn, codec: Codec.s16le, flags: this.seq ? 0 : Flag.first, stream: 0, epoch: this.epoch };
    this.socket.send(packFrame({ ...head, seq: ++this.seq, pts: this.sent, payload }));
    this.sent += samples.length;
  }

  userStarts() {
    this.speakingLine = addLine("you", "...");
    this.userEnded = null;
  }

  userStops({ audio_end_ms: end }) {
    this.userEnded = performance.now();
    if (this.speakingLine && !this.speakingLine.dataset.words) {
      this.speakingLine.textContent = `(you spoke, until ${(end / 1000).toFixed(1)} s)`;
    }
  }

  heard(words) {
    const line = (this.speakingLine ??= addLine("you", ""));
    line.dataset.words = (line.dataset.words ?? "") + words;
    line.textContent = line.dataset.words;
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

  frame(data) {
    const frame = unpackFrame(new Uint8Array(data));
    this.lastEvent = Math.max(this.lastEvent, frame.seq);
    if (frame.kind !== Kind.audioOut || frame.codec !== Codec.s16le || frame.epoch < this.epoch) return;
    const samples = floatsOf(frame.payload);
    this.received += samples.length;
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
      this.send({ type: "playback.ack", played_ms: 1000 * state.played });
    }
  }

  /** Nothing of an older epoch is heard any more. */
  interrupted(epoch) {
    this.epoch = epoch;
    this.player?.port.postMessage({ clear: true });
  }

  interrupt() {
    this.player?.port.postMessage({ clear: true }); // at once; the server's epoch follows
    if (this.line) this.send({ type: "response.cancel" });
  }

  say(text) {
    this.typed = true;
    addLine("you", text);
    this.send({ type: "conversation.item.create",
      item: { type: "message", role: "user", content: [{ type: "input_text", text }] } });
    this.send({ type: "response.create" });
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
    this.send({ type: "session.close" });
    this.socket?.close(1000);
    this.end("");
  }

  end(why) {
    if (live !== this) return;
    live = null;
    this.closing = true;
    this.hush();
    clearInterval(this.beats);
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

function setButtons(connected) {
  element("start").disabled = connected;
  element("stop").disabled = !connected;
  element("say").disabled = false;
  if (!connected) element("interrupt").disabled = true;
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
    const session = await mine.connect();
    await mine.open();
    mine.heartbeat();
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
    else if (mine === live) { mine.end(why ?? error.message); mine.socket?.close(1000); }
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
