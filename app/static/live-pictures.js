// Waveform and spectrogram on a canvas, from floats. Shared by the demo and the live page.

const ANCHORS = [[8, 6, 30], [52, 16, 98], [120, 28, 109], [187, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 164]];
const DYNAMICS = 80; // dB below the loudest point that are shown
const SIZE = 512; // samples of a window

function colour(level) {
  const place = Math.max(0, Math.min(0.9999, level)) * (ANCHORS.length - 1);
  const low = Math.floor(place);
  return ANCHORS[low].map((value, i) => value + (ANCHORS[low + 1][i] - value) * (place - low));
}
const COLOURS = Array.from({ length: 256 }, (_, i) => colour(i / 255));

/** Highest and lowest sample of each column. */
export function drawWave(canvas, samples) {
  const { width, height } = canvas;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#f6f7fb";
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = "#3a4ca0";
  for (let x = 0; x < width; x++) {
    const from = Math.floor((x * samples.length) / width);
    const to = Math.max(from + 1, Math.floor(((x + 1) * samples.length) / width));
    let low = 0, high = 0;
    for (let i = from; i < to && i < samples.length; i++) {
      if (samples[i] < low) low = samples[i];
      else if (samples[i] > high) high = samples[i];
    }
    const top = (1 - high) * height / 2;
    pen.fillRect(x, top, 1, Math.max(1, (1 - low) * height / 2 - top));
  }
}

/** In-place FFT of real and imaginary parts, a power of two long. */
function fft(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let size = 2; size <= n; size *= 2) {
    for (let k = 0; k < size / 2; k++) {
      const angle = (-2 * Math.PI * k) / size;
      const c = Math.cos(angle), s = Math.sin(angle);
      for (let i = k; i < n; i += size) {
        const j = i + size / 2;
        const re = real[j] * c - imaginary[j] * s, im = real[j] * s + imaginary[j] * c;
        real[j] = real[i] - re; imaginary[j] = imaginary[i] - im;
        real[i] += re; imaginary[i] += im;
      }
    }
  }
}

/** Log power over time (rightwards) and pitch (upwards, on a mel axis from 60 Hz to 12 kHz). */
export function drawSpectrogram(canvas, samples, rate, columns = 250) {
  const bins = SIZE / 2 + 1;
  const top = Math.min(12000, rate / 2);
  const rows = 90;
  const mel = (hertz) => Math.log1p(hertz / 700);
  const binOf = Array.from({ length: rows }, (_, r) => {
    const hertz = 700 * Math.expm1(mel(60) + ((mel(top) - mel(60)) * r) / (rows - 1));
    return Math.min(bins - 1, Math.round((hertz * SIZE) / rate));
  });
  const levels = new Float32Array(columns * rows);
  const real = new Float32Array(SIZE), imaginary = new Float32Array(SIZE);
  let loudest = -40;
  for (let x = 0; x < columns; x++) {
    const middle = Math.floor(((x + 0.5) * samples.length) / columns) - SIZE / 2;
    for (let i = 0; i < SIZE; i++) {
      const window = 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / (SIZE - 1));
      real[i] = (samples[middle + i] ?? 0) * window;
      imaginary[i] = 0;
    }
    fft(real, imaginary);
    for (let r = 0; r < rows; r++) {
      const bin = binOf[r];
      const level = 10 * Math.log10(real[bin] ** 2 + imaginary[bin] ** 2 + 1e-10);
      levels[r * columns + x] = level;
      if (level > loudest) loudest = level;
    }
  }
  const small = new ImageData(columns, rows);
  for (let r = 0; r < rows; r++) {
    for (let x = 0; x < columns; x++) {
      const level = 1 + (levels[r * columns + x] - loudest) / DYNAMICS;
      const [red, green, blue] = COLOURS[Math.max(0, Math.min(255, Math.round(255 * level)))];
      small.data.set([red, green, blue, 255], 4 * ((rows - 1 - r) * columns + x));
    }
  }
  const scratch = new OffscreenCanvas(columns, rows);
  scratch.getContext("2d").putImageData(small, 0, 0);
  canvas.getContext("2d").drawImage(scratch, 0, 0, canvas.width, canvas.height);
}
