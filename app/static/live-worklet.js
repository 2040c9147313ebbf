// Two audio worklets of the live page: the microphone in blocks of 16-bit samples, and playback with a jitter buffer.

/** Posts Int16Array blocks of `block` samples at the context's own rate, and the level of each (RMS, 0..1). */
class Microphone extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.block = new Int16Array(processorOptions.block);
    this.filled = 0;
    this.energy = 0;
  }

  process([input]) {
    const channel = input[0];
    if (!channel) return true; // no source yet
    for (const value of channel) {
      const clipped = Math.max(-1, Math.min(1, value));
      this.block[this.filled++] = Math.round(32767 * clipped);
      this.energy += clipped * clipped;
      if (this.filled === this.block.length) {
        const full = this.block;
        this.port.postMessage({ samples: full, level: Math.sqrt(this.energy / full.length) }, [full.buffer]);
        this.block = new Int16Array(full.length || sampleRate / 25);
        this.filled = this.energy = 0;
      }
    }
    return true;
  }
}

/** Plays what it is sent. Begins when `target` seconds are there, or the end is known; every gap raises the target, ten
 * seconds without one lower it. Of live speech that has piled up, silence is left out until it has caught up. */
class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    Object.assign(this, { queue: [], place: 0, held: 0, target: 0.06, playing: false, ended: true, live: false });
    Object.assign(this, { played: 0, gaps: 0, smooth: 0, told: 0, epoch: 0, skipped: 0 });
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(message) {
    if (message.samples) {
      this.queue.push(message.samples);
      this.held += message.samples.length;
    } else if (message.begin) {
      Object.assign(this, { ended: false, live: message.begin.live, played: 0 });
    } else if (message.end) {
      this.ended = true;
    } else if (message.clear) {
      Object.assign(this, { queue: [], place: 0, held: 0, playing: false, ended: true });
      this.tell();
    }
  }

  next() {
    const head = this.queue[0];
    const value = head[this.place++];
    this.held--;
    if (this.place === head.length) {
      this.queue.shift();
      this.place = 0;
    }
    return value;
  }

  /** Leaves out a silent block when live speech lags behind by more than twice the target. */
  catchUp(size) {
    if (!this.live || this.held < 2 * this.target * sampleRate + size) return;
    const head = this.queue[0];
    if (head.length - this.place <= size) return;
    for (let i = 0; i < size; i++) if (Math.abs(head[this.place + i]) > 0.003) return;
    this.place += size;
    this.held -= size;
    this.skipped += size;
    this.played += size;
  }

  process(_, [output]) {
    const channel = output[0];
    if (!this.playing && this.held && (this.ended || this.held >= this.target * sampleRate)) this.playing = true;
    if (this.playing) {
      this.catchUp(channel.length);
      let count = 0;
      while (count < channel.length && this.held) channel[count++] = this.next();
      this.played += count;
      this.smooth += channel.length;
      if (count < channel.length) {
        this.playing = false;
        if (!this.ended) {
          this.gaps++;
          this.smooth = 0;
          this.target = Math.min(0.4, this.target + 0.03);
        }
      } else if (this.smooth > 10 * sampleRate) {
        this.smooth = 0;
        this.target = Math.max(0.04, this.target - 0.01);
      }
    }
    this.told += channel.length;
    if (this.told > sampleRate / 10) this.tell();
    return true;
  }

  tell() {
    this.told = 0;
    const { played, gaps, target, playing, held, skipped } = this;
    this.port.postMessage({
      playing, gaps, target, played: played / sampleRate, held: held / sampleRate, skipped: skipped / sampleRate,
    });
  }
}

registerProcessor("microphone", Microphone);
registerProcessor("playback", Playback);
