// The microphone: live text with interims.

import { Broken, CallError, UNAVAILABLE, delay, seconds } from "./bridge.js";
import { Microphone, microphones, whyNoMicrophone } from "./microphone.js";
import { onOptions, options } from "./options.js";
import { LiveSource, Stream } from "./stream.js";
import { TranscriptView } from "./transcript.js";

const KEPT_S = 120; // of audio that the server has not acknowledged
const INTERIM_INTERVAL = "0.5s"; // words become stable sooner than with the server's second
const REOPEN_S = 60; // while a server restarts

const $ = (id) => document.getElementById(id);
const view = new TranscriptView($("live-transcript"));
const [record, finalize, device, level, state] = ["record", "finalize", "device", "level", "live-state"].map($);
let recording = null;

class Recording {
  #microphone = new Microphone();
  #source = null;
  #stream = null;
  #rateHz = 0;
  #offsetS = 0;
  #startedMs = 0;
  #latencies = [];
  #interims = 0;
  #reconnections = 0;
  #isStopping = false;

  async run() {
    say("Waiting for the microphone …");
    const early = [];
    let push = (data) => early.push(data);
    this.#rateHz = await this.#microphone.start(device.value, ({ data, peak }) => {
      level.value = Math.max(peak, 0.85 * level.value);
      this.#startedMs ||= performance.now() - 40;
      push(new Uint8Array(data));
    });
    this.#source = new LiveSource(2 * this.#rateHz * KEPT_S);
    push = (data) => {
      if (!this.#source.push(data)) this.#fail(new Error("The server has not taken audio for two minutes."));
      $("fact-audio").textContent = `${(this.#offsetS + this.#source.length / 2 / this.#rateHz).toFixed(0)} s`;
    };
    early.forEach(push);
    listMicrophones();
    if (this.#isStopping) this.#source.end();
    for (let part = 1; ; part++) {
      const completed = await this.#session();
      const transcript = completed.completed.transcript;
      const isLast = this.#isStopping || completed.completed.endReason !== "STREAM_END_REASON_DRAINING";
      view.downloads(transcript, "microphone", part > 1 || !isLast ? ` ${part}` : "");
      if (isLast) return completed.completed.endReason;
      const taken = Number(completed.acknowledgedBytes ?? 0);
      this.#offsetS += taken / 2 / this.#rateHz;
      this.#source.rebase(taken);
      this.#reconnected();
    }
  }

  /** Ends the audio; the text of what was spoken still comes. */
  stop() {
    this.#isStopping = true;
    this.#microphone.stop();
    level.value = 0;
    this.#source?.end();
  }

  finalize() {
    this.#stream?.finalize();
  }

  update() {
    this.#stream?.update(options());
  }

  #fail(error) {
    this.stop();
    this.#stream?.cancel();
    say(error.message, true);
  }

  async #session() {
    const config = {
      format: { encoding: "AUDIO_ENCODING_PCM_S16LE", sampleRateHertz: this.#rateHz, channelCount: 1 },
      options: options(),
      interimResults: true,
      interimInterval: INTERIM_INTERVAL,
    };
    const until = performance.now() + 1000 * REOPEN_S;
    for (;;) {
      const handlers = { onEvent: (event) => this.#event(event), onBreak: () => this.#broke() };
      this.#stream = new Stream(config, this.#source, handlers);
      try {
        return await this.#stream.run();
      } catch (error) {
        // A server that restarts: the next one takes the rest.
        const isRestart = this.#offsetS && (error instanceof Broken || error.code === UNAVAILABLE);
        if (!isRestart || performance.now() > until) throw error;
        await delay(1000);
      }
    }
  }

  #event(event) {
    if (event.started) say("Listening.");
    if (event.interim) {
      view.interim(event.interim);
      $("fact-interims").textContent = ++this.#interims;
    }
    if (event.segment) {
      const spokenMs = this.#startedMs + 1000 * (this.#offsetS + seconds(event.segment.endOffset));
      const latency = (performance.now() - spokenMs) / 1000;
      this.#latencies.push(latency);
      const sorted = this.#latencies.toSorted((a, b) => a - b);
      $("fact-latency").textContent = `${latency.toFixed(2)} s`;
      $("fact-median").textContent = `${sorted[sorted.length >> 1].toFixed(2)} s`;
      view.segment(event.segment, `final after ${latency.toFixed(2)} s`, this.#offsetS);
    }
    if (event.configured) say("The new options are in force from the next utterance on.");
    if (event.warning) say(event.warning.message, true);
  }

  #broke() {
    say("The connection broke; reconnecting. Nothing is lost: this page keeps the audio.", true);
    this.#reconnected();
  }

  #reconnected() {
    $("fact-reconnections").textContent = ++this.#reconnections;
  }
}

function say(text, isBad = false) {
  state.textContent = text;
  state.classList.toggle("bad", isBad);
}

async function toggle() {
  if (recording) {
    say("Finishing …");
    record.disabled = true;
    recording.stop();
    return;
  }
  view.clear();
  for (const id of ["fact-interims", "fact-reconnections"]) $(id).textContent = "0";
  for (const id of ["fact-audio", "fact-latency", "fact-median"]) $(id).textContent = "–";
  recording = new Recording();
  record.textContent = "Stop";
  record.classList.add("on");
  finalize.disabled = false;
  try {
    const reason = await recording.run();
    say(reason === "STREAM_END_REASON_IDLE" ? "The server ended the stream: no audio came." : "Done.");
  } catch (error) {
    say(error instanceof CallError && error.reason ? `${error.message} (${error.reason})` : error.message, true);
  } finally {
    recording.stop();
    recording = null;
    view.interim(null);
    record.textContent = "Start";
    record.classList.remove("on");
    record.disabled = whyNoMicrophone() !== "";
    finalize.disabled = true;
  }
}

async function listMicrophones() {
  const chosen = device.value;
  device.replaceChildren(new Option("Default microphone", ""));
  for (const one of await microphones()) device.add(new Option(one.label || "Microphone", one.deviceId));
  device.value = [...device.options].some(({ value }) => value === chosen) ? chosen : "";
}

/** Sets the panel up. */
export function start() {
  const why = whyNoMicrophone();
  $("insecure").hidden = !why;
  $("insecure").textContent = why;
  record.disabled = why !== "";
  record.onclick = toggle;
  finalize.onclick = () => recording?.finalize();
  document.addEventListener("keydown", (event) => {
    if (!event.ctrlKey || $("live").hidden || document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && !record.disabled) toggle();
    else if (event.key === "." && recording) recording.finalize();
    else return;
    event.preventDefault();
  });
  onOptions(() => recording?.update());
  addEventListener("beforeunload", (event) => recording && event.preventDefault());
  if (!why) listMicrophones();
}
