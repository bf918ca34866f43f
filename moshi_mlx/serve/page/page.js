// The page: one conversation in Kyutai's protocol (kinds of messages: 0 ready, 1 sound, 2 words, 4 about, 5 error).
import { Opus, Samples, opusWorks } from "./coder.js";

const $ = (id) => document.getElementById(id);
const WAIT_MS = 10000; // for a first message after the conversation began
const UNREACHABLE = "The server cannot be reached. Is it running, and is the network there?";
let talk = null;
$("token").value = new URLSearchParams(location.hash.slice(1)).get("token") || "";

function say(words) {
  $("status").textContent = words;
}

function trouble(words) {
  $("trouble").textContent = words;
  $("trouble").hidden = !words;
}

function address(rate) {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData($("settings"))) if (value !== "") query.set(name, value);
  if ($("token").value) query.set("auth_id", $("token").value);
  if (rate) query.set("pcm", rate);
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/chat?${query}`;
}

// The microphone as it comes; where the browser can cancel all it plays, it is asked to.
async function microphone() {
  if (!navigator.mediaDevices || !window.AudioWorkletNode) {
    throw new Error("This page needs https, or to be opened on the machine that serves it: browsers give no microphone otherwise.");
  }
  const ask = (echoCancellation) =>
    navigator.mediaDevices.getUserMedia({ audio: { noiseSuppression: true, autoGainControl: true, echoCancellation } });
  try {
    return await ask({ exact: "all" }).catch((error) => (error.name === "OverconstrainedError" ? ask(true) : Promise.reject(error)));
  } catch (error) {
    if (error.name === "NotAllowedError") throw new Error("The microphone was refused. Allow it in the browser's settings for this page, then press Talk.");
    if (error.name === "NotFoundError") throw new Error("No microphone was found. Connect one, then press Talk.");
    throw new Error(`The microphone cannot be used: ${error.message}`);
  }
}

class Talk {
  constructor() {
    this.over = false;
    this.muted = false;
    this.words = "";
  }

  async open() {
    say("Asking for the microphone …");
    this.context = new AudioContext();
    this.stream = await microphone();
    if (this.over) return this.close();
    await this.context.audioWorklet.addModule("worklet.js").catch(() => Promise.reject(new Error(UNREACHABLE)));
    this.source = this.context.createMediaStreamSource(this.stream);
    this.ears = new AudioWorkletNode(this.context, "microphone", { numberOfOutputs: 0 });
    this.voice = new AudioWorkletNode(this.context, "speaker", { numberOfInputs: 0, outputChannelCount: [1] });
    this.source.connect(this.ears);
    this.voice.connect(this.context.destination);
    this.ears.port.onmessage = ({ data }) => this.said(data);
    this.voice.port.onmessage = ({ data }) => this.shown(data);
    for (const track of this.stream.getTracks()) track.onended = () => this.end("The microphone is gone. Press Talk to go on with another.");
    if ($("record").checked) this.record();
    await this.context.resume();
    this.connect(await opusWorks(this.context.sampleRate));
  }

  connect(opus) {
    say("Connecting …");
    this.socket = new WebSocket(address(opus ? 0 : this.context.sampleRate));
    this.socket.binaryType = "arraybuffer";
    this.opus = opus;
    this.socket.onopen = () => say("In line: all places are taken. You are let in when somebody leaves.");
    this.socket.onmessage = ({ data }) => this.message(new Uint8Array(data));
    this.socket.onclose = (event) => this.closed(event);
  }

  message(bytes) {
    this.heard = performance.now();
    const body = bytes.subarray(1);
    if (bytes[0] === 0) this.begin();
    else if (bytes[0] === 1 && this.coder) this.coder.hear(body);
    else if (bytes[0] === 2) this.read(new TextDecoder().decode(body));
    else if (bytes[0] === 4) this.about(JSON.parse(new TextDecoder().decode(body)));
    else if (bytes[0] === 5) this.reason = new TextDecoder().decode(body);
  }

  begin() {
    this.began = performance.now();
    const send = (bytes) => {
      if (this.socket.readyState !== WebSocket.OPEN) return;
      const message = new Uint8Array(bytes.length + 1);
      message[0] = 1;
      message.set(bytes, 1);
      this.socket.send(message);
    };
    const play = (sound, rate) => this.play(sound, rate);
    const failed = (error) => this.end(`The sound could not be coded: ${error.message}`);
    this.coder = new (this.opus ? Opus : Samples)(this.context.sampleRate, send, play, failed);
    this.clock = setInterval(() => this.watch(), 500);
    $("mute").disabled = $("restart").disabled = false;
    say("Talking. Moshi hears you.");
  }

  said(sound) {
    if (!this.coder || this.over) return;
    if (this.muted) sound.fill(0);
    $("you").value = Math.sqrt(sound.reduce((peak, x) => Math.max(peak, Math.abs(x)), 0));
    this.coder.say(sound);
    this.lastSent = performance.now();
  }

  play(sound, rate) {
    if (rate !== this.context.sampleRate) sound = this.resampled(sound, rate / this.context.sampleRate);
    if (window.heardByTests) window.heardByTests.push(sound.slice());
    this.voice.port.postMessage(sound, [sound.buffer]);
  }

  // Straight lines between samples, over the edges of blocks too: 48 to 44.1 kHz at most, of speech up to 12 kHz.
  resampled(sound, ratio) {
    const line = new Float32Array(sound.length + 1), first = this.phase || 0;
    line[0] = this.last || 0;
    line.set(sound, 1);
    const out = new Float32Array(Math.max(0, Math.ceil((sound.length - first) / ratio)));
    for (let i = 0; i < out.length; i++) {
      const at = first + i * ratio, low = Math.floor(at);
      out[i] = line[low] + (line[low + 1] - line[low]) * (at - low);
    }
    this.phase = first + out.length * ratio - sound.length;
    this.last = sound[sound.length - 1];
    return out;
  }

  shown({ peak, waiting, missed }) {
    $("moshi").value = Math.sqrt(peak);
    if (!this.began) return;
    $("buffered").textContent = `${Math.round(1000 * waiting)} ms`;
    $("missed").textContent = `${missed.toFixed(1)} s`;
    // Two frames of the model, what waits here, the device's own.
    const own = (this.context.baseLatency || 0) + (this.context.outputLatency || 0);
    $("latency").textContent = `about ${Math.round(1000 * (0.16 + waiting + own))} ms`;
  }

  read(words) {
    const box = $("words"), end = box.scrollHeight - box.scrollTop - box.clientHeight < 20;
    this.words += words;
    box.append(this.words === words ? words.trimStart() : words);
    if (end) box.scrollTop = box.scrollHeight;
  }

  about(what) {
    $("model").textContent = what.lm_model_file;
    $("voice").textContent = what.voice_prompt || what.lm_model_file;
    this.seed = what.seed;
    $("seed").placeholder = `by chance (now ${what.seed})`;
  }

  watch() {
    const now = performance.now(), seconds = Math.floor((now - this.began) / 1000);
    $("time").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    if (now - Math.max(this.heard, this.began) > WAIT_MS) this.end("Nothing has come for ten seconds: the network or the server is gone. Press Talk to try again.");
  }

  mute() {
    this.muted = !this.muted;
    $("mute").setAttribute("aria-pressed", this.muted);
    say(this.muted ? "Muted. Moshi hears silence." : "Talking. Moshi hears you.");
  }

  // Both sides, you left and Moshi right, by the browser's own recorder; nothing leaves this machine.
  record() {
    const both = this.context.createChannelMerger(2), target = this.context.createMediaStreamDestination();
    this.source.connect(both, 0, 0);
    this.voice.connect(both, 0, 1);
    both.connect(target);
    this.parts = [];
    this.recorder = new MediaRecorder(target.stream);
    this.recorder.ondataavailable = ({ data }) => this.parts.push(data);
    this.recorder.onstop = () => {
      const link = $("file"), type = this.recorder.mimeType || "audio/webm";
      URL.revokeObjectURL(link.href);
      link.href = URL.createObjectURL(new Blob(this.parts, { type }));
      link.download = `moshi.${type.includes("mp4") ? "m4a" : type.includes("ogg") ? "ogg" : "webm"}`;
      link.hidden = false;
    };
    this.recorder.start(1000);
  }

  closed({ code }) {
    if (this.over) return;
    if (this.reason) this.end(`The server ended it: ${this.reason}.`);
    else if (this.began) this.end("The connection is gone. Press Talk to begin anew.");
    else this.refused(code);
  }

  async refused() {
    let words = UNREACHABLE;
    try {
      const health = await (await fetch("health")).json();
      if (health.status === "draining") words = "The server is about to end and lets nobody in.";
      else if (health.free === 0) words = "All places are taken, and the line is full. Try again in a moment.";
      else words = "The server did not let this page in. Is the token right?";
    } catch { /* it cannot be reached */ }
    this.end(words);
  }

  end(words = "") {
    if (this.over) return;
    this.over = true;
    this.close();
    trouble(words);
    say(words ? "Not talking." : "Stopped.");
    idle();
  }

  close() {
    clearInterval(this.clock);
    if (this.recorder && this.recorder.state !== "inactive") this.recorder.stop();
    if (this.socket) this.socket.close();
    if (this.coder) this.coder.close();
    if (this.stream) for (const track of this.stream.getTracks()) track.stop();
    if (this.context && this.context.state !== "closed") setTimeout(() => this.context.close(), 100);
    if (talk === this) talk = null;
  }
}

function idle() {
  $("talk").textContent = "Talk";
  $("mute").disabled = $("restart").disabled = true;
  $("mute").setAttribute("aria-pressed", "false");
  $("you").value = $("moshi").value = 0;
}

async function start() {
  trouble("");
  $("words").textContent = "";
  $("talk").textContent = "Stop";
  const mine = (talk = new Talk());
  try {
    await mine.open();
  } catch (error) {
    mine.end(error.message || String(error));
  }
}

const stop = () => talk && talk.end();
$("talk").onclick = () => (talk ? stop() : start());
$("mute").onclick = () => talk && talk.mute();
$("restart").onclick = () => {
  stop();
  start();
};
$("settings").onsubmit = (event) => event.preventDefault();
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const button = { t: "talk", m: "mute", r: "restart" }[event.key.toLowerCase()];
  if (button && !$(button).disabled) $(button).click();
});
addEventListener("pagehide", stop);
addEventListener("offline", () => talk && talk.end("The network is gone. Press Talk when it is back."));
fetch("health").then((answer) => answer.json()).then((health) => {
  $("model").textContent = $("voice").textContent = health.model;
  if (!health.voices) return;
  for (const name of health.voices) $("voice_prompt").append(new Option(name));
  $("personas").hidden = false;
}).catch(() => {});
