// The browser's side of quaver's protocols: frames, the text-in socket, conversations, and playback without gaps. An ES
// module. docs/protocol.md describes the messages; tests/app/server/test_clients.py runs it against tests/vectors.

export const SUBPROTOCOL = "quaver.v1.bin";
export const HEADER_BYTES = 24;
export const Kind = { audioIn: 1, audioOut: 2, codes: 3, text: 4 };
export const Codec = { s16le: 0, f32le: 1, opusPacket: 2, oggOpus: 3, mulaw: 4 };
export const Flag = { first: 1, last: 2, discontinuity: 4, silence: 8 };
export const Moshi = { handshake: 0, audio: 1, text: 2, control: 3, metadata: 4, error: 5, ping: 6, colouredText: 7 };

// -- binary frames ----------------------------------------------------------------------------------------------------

/** A frame's bytes. `pts` is a BigInt, the other numbers are Numbers, `payload` a Uint8Array. */
export function packFrame({ kind, codec, flags, seq, epoch, stream, pts, payload }) {
  const bytes = new Uint8Array(HEADER_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  [1, kind, codec, flags].forEach((value, place) => view.setUint8(place, value));
  [seq, epoch, stream].forEach((value, place) => view.setUint32(4 + 4 * place, value >>> 0, true));
  view.setBigUint64(16, BigInt(pts), true);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

/** The frame of these bytes (Uint8Array). Throws when they are too few, or of another version. */
export function unpackFrame(bytes) {
  if (bytes.length < HEADER_BYTES) throw new Error(`a frame has at least ${HEADER_BYTES} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint8(0) !== 1) throw new Error(`frames of version ${view.getUint8(0)} are not known`);
  const [seq, epoch, stream] = [4, 8, 12].map((place) => view.getUint32(place, true));
  const [kind, codec, flags] = [1, 2, 3].map((place) => view.getUint8(place));
  return { kind, codec, flags, seq, epoch, stream, pts: view.getBigUint64(16, true), payload: bytes.subarray(HEADER_BYTES) };
}

/** A message of Moshi's protocol. */
export function packMoshi(kind, payload) {
  const bytes = new Uint8Array(1 + payload.length);
  bytes[0] = kind;
  bytes.set(payload, 1);
  return bytes;
}

export function unpackMoshi(bytes) {
  if (!bytes.length) throw new Error("an empty message has no kind");
  return { kind: bytes[0], payload: bytes.subarray(1), known: Object.values(Moshi).includes(bytes[0]) };
}

/** 16-bit little-endian samples as floats in [-1, 1]. */
export function floatsOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const samples = new Float32Array(bytes.byteLength >> 1);
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32767;
  return samples;
}

// -- text in, audio out -----------------------------------------------------------------------------------------------

/** WS /v1/audio/speech/stream. Handlers: onStart(message), onAudio(Uint8Array), onWords(message), onEnd(message),
 * onDone(message), onError({code, message}), onClose(code). */
export class SpeechSocket {
  constructor(url, handlers = {}, { ticket = null, WebSocketClass = globalThis.WebSocket } = {}) {
    this.handlers = handlers;
    const place = `${url.replace(/^http/, "ws").replace(/\/$/, "")}/v1/audio/speech/stream`;
    this.socket = new WebSocketClass(ticket ? `${place}?ticket=${encodeURIComponent(ticket)}` : place);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (event) => this.take(event.data);
    this.socket.onclose = (event) => this.handlers.onClose?.(event.code);
  }

  /** Resolves when the server has taken the settings (fields of `session.config`). */
  configure(settings = {}) {
    return new Promise((resolve, reject) => {
      this.configured = { resolve, reject };
      const send = () => this.send({ type: "session.config", response_format: "pcm", ...settings });
      if (this.socket.readyState === 1) send();
      else this.socket.onopen = send;
      this.socket.onerror = () => reject(new Error("the server cannot be reached"));
    });
  }

  say(text) { this.send({ type: "input.text", text }); }
  finish() { this.send({ type: "input.done" }); }
  cancel() { this.send({ type: "input.cancel" }); }
  played(milliseconds) { this.send({ type: "playback.ack", played_ms: milliseconds }); }
  close() { this.send({ type: "session.close" }); }
  send(message) { this.socket.send(JSON.stringify(message)); }

  take(data) {
    if (typeof data !== "string") {
      this.handlers.onAudio?.(new Uint8Array(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "session.configured") this.configured?.resolve(message);
    else if (message.type === "error") {
      this.configured?.reject(new Error(message.error.message));
      this.handlers.onError?.(message.error);
    } else {
      const names = { "audio.start": "onStart", "word.timestamps": "onWords", "audio.done": "onEnd", "session.done": "onDone" };
      this.handlers[names[message.type]]?.(message); // unknown messages are ignored
    }
  }
}

// -- conversations ----------------------------------------------------------------------------------------------------

/** WS /v1/realtime in binary frames: a microphone in, a voice out, and OpenAI's events beside them. A line that drops is
 * taken up again within the server's grace period, and nothing of an interrupted answer is handed on.
 *
 * Handlers: onVoice(Float32Array, frame), onEvent(message) for every event, onEpoch(epoch): play nothing older,
 * onTrip(milliseconds), onDropped(), onResumed(), onClosed(code, reason, lost) at the end.
 * `ticket`: a string, which is good for one connection, or a function that gives (a promise of) a new one each time. */
export class RealtimeSocket {
  constructor(url, handlers = {}, { ticket = null, model = null, WebSocketClass = globalThis.WebSocket } = {}) {
    Object.assign(this, { handlers, ticket, WebSocketClass, seq: 0, lastEvent: 0, epoch: 0, sent: 0, received: 0 });
    Object.assign(this, { session: null, token: null, grace: 0, closing: false, resuming: false });
    const query = model ? `?model=${encodeURIComponent(model)}` : "";
    this.place = `${url.replace(/^http/, "ws").replace(/\/$/, "")}/v1/realtime${query}`;
  }

  /** Resolves to the session. */
  async connect() {
    const created = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.use(await this.dial());
    return created;
  }

  async dial() {
    const ticket = typeof this.ticket === "function" ? await this.ticket() : this.ticket;
    const protocols = ticket ? [SUBPROTOCOL, `openai-insecure-api-key.${ticket}`] : [SUBPROTOCOL];
    const socket = new this.WebSocketClass(this.place, protocols);
    socket.binaryType = "arraybuffer";
    return socket;
  }

  use(socket) {
    this.socket = socket;
    socket.onmessage = ({ data }) => this.take(data);
    socket.onclose = ({ code, reason }) => this.closed(code, reason);
  }

  send(message) {
    if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(message));
  }

  // -- what the client says -------------------------------------------------------------------------------------------
  /** Settings of the input: { format: { type: "audio/pcm", rate }, turn_detection, transcription }. */
  configure(input) { this.send({ type: "session.update", session: { type: "realtime", audio: { input } } }); }

  /** A block of the microphone, Int16Array. Lost while the line is down: the model waits meanwhile. */
  hear(samples) {
    if (this.socket?.readyState !== 1 || this.resuming) return;
    const payload = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
    const head = { kind: Kind.audioIn, codec: Codec.s16le, flags: this.seq ? 0 : Flag.first, stream: 0, epoch: this.epoch };
    this.socket.send(packFrame({ ...head, seq: ++this.seq, pts: this.sent, payload }));
    this.sent += samples.length;
  }

  /** Has a text spoken. */
  say(text) {
    this.send({ type: "conversation.item.create",
      item: { type: "message", role: "user", content: [{ type: "input_text", text }] } });
    this.send({ type: "response.create" });
  }

  interrupt() { this.send({ type: "response.cancel" }); }
  played(milliseconds) { this.send({ type: "playback.ack", played_ms: milliseconds }); }

  close() {
    this.closing = true;
    this.send({ type: "session.close" });
    this.socket?.close(1000);
  }

  // -- what the server says -------------------------------------------------------------------------------------------
  take(data) {
    if (typeof data === "string") this.event(JSON.parse(data));
    else this.frame(unpackFrame(new Uint8Array(data)));
  }

  frame(frame) {
    this.lastEvent = Math.max(this.lastEvent, frame.seq);
    if (frame.kind !== Kind.audioOut || frame.codec !== Codec.s16le || frame.epoch < this.epoch) return;
    const samples = floatsOf(frame.payload);
    this.received += samples.length;
    this.handlers.onVoice?.(samples, frame);
  }

  event(message) {
    if (message.server_event_seq && !this.resuming) this.lastEvent = message.server_event_seq;
    if (message.epoch > this.epoch) {
      this.epoch = message.epoch;
      this.handlers.onEpoch?.(this.epoch);
    }
    if (message.type === "session.created") this.begin(message.session);
    else if (message.type === "session.resumed") this.resumed(message);
    else if (message.type === "session.heartbeat") this.handlers.onTrip?.(performance.now() - this.beat);
    this.handlers.onEvent?.(message);
  }

  begin(session) {
    if (this.resuming) return; // the fresh session that a resume leaves behind
    this.session = session;
    this.token = session.resume_token;
    this.grace = session.disconnect_grace_s;
    this.heartbeat();
    this.resolve?.(session);
  }

  heartbeat() {
    clearInterval(this.beats);
    this.beats = setInterval(() => {
      this.beat = performance.now();
      this.send({ type: "session.heartbeat" });
    }, 2000);
  }

  closed(code, reason, lost = false) {
    clearInterval(this.beats);
    this.reject?.(new Error(reason || `closed (${code})`));
    if (!lost && !this.closing && this.token && this.grace > 0 && (code === 1006 || code === 1001)) this.resume();
    else this.handlers.onClosed?.(code, reason, lost);
  }

  /** After a dropped line: the same session again, from the last event that arrived. */
  async resume() {
    this.resuming = true;
    this.handlers.onDropped?.();
    const until = performance.now() + 1000 * this.grace;
    while (performance.now() < until && !this.closing) {
      try {
        const socket = await this.dial();
        await new Promise((resolve, reject) => Object.assign(socket, { onopen: resolve, onerror: reject }));
        this.use(socket);
        this.send({ type: "session.resume", resume_token: this.token, last_seq: this.lastEvent });
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
    }
    this.closed(1006, "", true);
  }

  resumed(message) {
    this.resuming = false;
    this.token = message.resume_token;
    this.heartbeat();
    this.handlers.onResumed?.();
  }
}

// -- playback ---------------------------------------------------------------------------------------------------------

/** Plays chunks of floats one after the other, without gaps as long as they come in time. */
export class Player {
  constructor(context, sampleRate, lead = 0.08) {
    Object.assign(this, { context, sampleRate, lead, next: 0, sources: new Set(), queued: 0 });
  }

  push(samples) {
    if (!samples.length) return;
    const buffer = this.context.createBuffer(1, samples.length, this.sampleRate);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    const start = Math.max(this.next, this.context.currentTime + (this.next ? 0 : this.lead));
    source.start(start);
    this.next = start + buffer.duration;
    this.queued += buffer.duration;
    this.sources.add(source);
    source.onended = () => this.sources.delete(source);
  }

  /** Seconds of what was pushed that have been heard. */
  get played() { return Math.max(0, this.queued - Math.max(0, this.next - this.context.currentTime)); }

  /** Silence at once: what is queued is forgotten. */
  stop() {
    for (const source of this.sources) source.stop();
    this.sources.clear();
    this.next = 0;
    this.queued = 0;
  }
}
