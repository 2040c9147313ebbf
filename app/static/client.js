// The browser's side of quaver's protocols: frames, the text-in socket, and playback without gaps. An ES module.
// docs/protocol.md describes the messages; tests/app/server/test_javascript.py runs this file against tests/vectors.

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
