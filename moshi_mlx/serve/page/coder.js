// Sound to the bytes of a message and back: Opus in Ogg by the browser's own coder, or 16-bit samples where it has none.

const CRC = Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 24;
  for (let bit = 0; bit < 8; bit++) crc = crc & 0x80000000 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
  return crc >>> 0;
});

// A page that holds whole packets (RFC 3533).
class Pages {
  constructor() {
    this.serial = Math.floor(Math.random() * 2 ** 32);
    this.number = 0;
  }

  page(packet, position, place = 0) {
    const lacing = [...Array(Math.floor(packet.length / 255)).fill(255), packet.length % 255];
    const page = new Uint8Array(27 + lacing.length + packet.length), view = new DataView(page.buffer);
    page.set([0x4f, 0x67, 0x67, 0x53, 0, place]);
    view.setUint32(6, position % 2 ** 32, true);
    view.setUint32(10, Math.floor(position / 2 ** 32), true);
    view.setUint32(14, this.serial, true);
    view.setUint32(18, this.number++, true);
    page[26] = lacing.length;
    page.set(lacing, 27);
    page.set(packet, 27 + lacing.length);
    view.setUint32(22, page.reduce((crc, byte) => ((crc << 8) ^ CRC[(crc >>> 24) ^ byte]) >>> 0, 0), true);
    return page;
  }
}

const text = (words) => new TextEncoder().encode(words);

function head(rate) {
  const packet = new Uint8Array(19), view = new DataView(packet.buffer);
  packet.set(text("OpusHead"));
  packet.set([1, 1], 8);
  view.setUint16(10, 312, true);
  view.setUint32(12, rate, true);
  return packet;
}

export async function opusWorks(rate) {
  if (typeof AudioEncoder === "undefined" || typeof AudioDecoder === "undefined") return false;
  try {
    const encoder = await AudioEncoder.isConfigSupported(encoding(rate));
    const decoder = await AudioDecoder.isConfigSupported(decoding(rate));
    return encoder.supported && decoder.supported;
  } catch {
    return false;
  }
}

const encoding = (rate) => ({ codec: "opus", sampleRate: rate, numberOfChannels: 1, bitrate: 32000, opus: { frameDuration: 20000 } });
const decoding = () => ({ codec: "opus", sampleRate: 48000, numberOfChannels: 1 });

// send(bytes) gets what is to be sent; play(Float32Array, rate) what has come.
export class Opus {
  constructor(rate, send, play, failed) {
    this.rate = rate;
    this.pages = new Pages();
    this.time = this.position = this.chunk = 0;
    this.rest = new Uint8Array(0);
    send(this.pages.page(head(rate), 0, 2));
    send(this.pages.page(new Uint8Array([...text("OpusTags"), 4, 0, 0, 0, ...text("page"), 0, 0, 0, 0]), 0));
    this.encoder = new AudioEncoder({
      output: (chunk) => {
        const packet = new Uint8Array(chunk.byteLength);
        chunk.copyTo(packet);
        this.position += Math.round((chunk.duration || 20000) * 0.048);
        send(this.pages.page(packet, this.position));
      },
      error: failed,
    });
    this.encoder.configure(encoding(rate));
    this.decoder = new AudioDecoder({
      output: (data) => {
        const sound = new Float32Array(data.numberOfFrames);
        data.copyTo(sound, { planeIndex: 0, format: "f32-planar" });
        play(sound, data.sampleRate);
        data.close();
      },
      error: failed,
    });
    this.decoder.configure(decoding());
  }

  say(sound) {
    const data = new AudioData({
      format: "f32-planar", sampleRate: this.rate, numberOfFrames: sound.length, numberOfChannels: 1,
      timestamp: Math.round((this.time / this.rate) * 1e6), data: sound,
    });
    this.time += sound.length;
    this.encoder.encode(data);
    data.close();
  }

  hear(bytes) {
    const all = new Uint8Array(this.rest.length + bytes.length);
    all.set(this.rest);
    all.set(bytes, this.rest.length);
    let at = 0;
    while (at + 27 <= all.length) {
      const count = all[at + 26], table = all.subarray(at + 27, at + 27 + count);
      const size = 27 + count + table.reduce((sum, length) => sum + length, 0);
      if (at + 27 + count > all.length || at + size > all.length) break;
      this.packets(table, all.subarray(at + 27 + count, at + size));
      at += size;
    }
    this.rest = all.slice(at);
  }

  packets(table, body) {
    let start = 0, end = 0;
    for (const length of table) {
      end += length;
      if (length === 255) continue;
      const packet = body.slice(start, end);
      start = end;
      if (new TextDecoder().decode(packet.subarray(0, 4)) === "Opus") continue; // OpusHead, OpusTags
      this.decoder.decode(new EncodedAudioChunk({ type: "key", timestamp: this.chunk++ * 40000, data: packet }));
    }
  }

  close() {
    for (const coder of [this.encoder, this.decoder]) if (coder.state !== "closed") coder.close();
  }
}

export class Samples {
  constructor(rate, send, play) {
    Object.assign(this, { rate, send, play });
  }

  say(sound) {
    this.send(new Uint8Array(Int16Array.from(sound, (x) => Math.max(-32768, Math.min(32767, Math.round(x * 32767)))).buffer));
  }

  hear(bytes) {
    this.play(Float32Array.from(new Int16Array(bytes.slice().buffer), (x) => x / 32768), this.rate);
  }

  close() {}
}
