// Two processors: one hands the microphone's sound on in blocks, one plays what comes, with a small buffer before it.

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate * 0.02));
    this.filled = 0;
  }

  process([channels]) {
    const sound = channels[0];
    if (!sound) return true;
    for (let i = 0; i < sound.length; i++) {
      this.block[this.filled++] = sound[i];
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

// Playing begins when FIRST seconds wait. After a gap it begins anew, with a little more each time, up to LARGEST. Where
// more than MOST seconds wait (a network that held them back), the oldest is left out.
const FIRST = 0.08, STEP = 0.02, LARGEST = 0.24, MOST = 0.6;

class Speaker extends AudioWorkletProcessor {
  constructor() {
    super();
    this.port.onmessage = ({ data }) => this.take(data);
    this.empty();
    this.wanted = FIRST;
  }

  empty() {
    this.parts = [];
    this.waiting = 0;
    this.playing = false;
    this.played = this.missed = 0;
  }

  take(data) {
    if (data === "empty") return this.empty();
    this.parts.push(data);
    this.waiting += data.length;
    while (this.waiting > MOST * sampleRate) this.drop(this.waiting - this.wanted * sampleRate);
  }

  drop(count) {
    while (count > 0 && this.parts.length) {
      const part = this.parts.shift();
      const gone = Math.min(count, part.length);
      if (gone < part.length) this.parts.unshift(part.subarray(Math.ceil(gone)));
      this.waiting -= Math.ceil(gone);
      count -= Math.ceil(gone);
    }
  }

  process(_, [[out]]) {
    if (!this.playing && this.waiting >= this.wanted * sampleRate) this.playing = true;
    if (this.playing) this.fill(out);
    this.ticks = (this.ticks || 0) + 1;
    if (this.ticks % 16 === 0) {
      let peak = 0;
      for (const value of out) peak = Math.max(peak, Math.abs(value));
      this.port.postMessage({
        peak, waiting: this.waiting / sampleRate, missed: this.missed / sampleRate, played: this.played / sampleRate,
      });
    }
    return true;
  }

  fill(out) {
    let filled = 0;
    while (filled < out.length && this.parts.length) {
      const part = this.parts[0], count = Math.min(part.length, out.length - filled);
      out.set(part.subarray(0, count), filled);
      filled += count;
      if (count === part.length) this.parts.shift();
      else this.parts[0] = part.subarray(count);
    }
    this.waiting -= filled;
    this.played += filled;
    if (filled < out.length) {
      this.missed += out.length - filled;
      this.playing = false;
      this.wanted = Math.min(LARGEST, this.wanted + STEP);
    }
  }
}

registerProcessor("microphone", Microphone);
registerProcessor("speaker", Speaker);
