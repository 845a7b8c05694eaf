// Recordings: at once with progress, or as a job.

import { CallError, call, upload } from "./bridge.js";
import { remember } from "./jobs.js";
import { options } from "./options.js";
import { FileSource, Stream } from "./stream.js";
import { TranscriptView, percent } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const [form, input, begin, cancel, state, progress] = ["file-form", "file", "file-start", "file-cancel", "file-state", "file-progress"].map($);
let view = null;
let abort = null;

function say(text, isBad = false) {
  state.textContent = text;
  state.classList.toggle("bad", isBad);
}

async function transcribe(file) {
  view ??= new TranscriptView($("file-transcript"));
  view.clear();
  const began = performance.now();
  let audioS = 0;
  const stream = new Stream({ mode: "STREAM_MODE_FILE", options: options() }, new FileSource(file), {
    onEvent: (event) => {
      if (event.segment) view.segment(event.segment);
      if (event.warning) say(event.warning.message, true);
      if (event.progress) {
        progress.value = event.progress.fraction ?? 0;
        say(`${percent(progress.value)} · ${event.progress.chunksDone ?? 0} of ${event.progress.chunksTotal ?? 0} chunks`);
        audioS = Number.parseFloat(event.progress.audioReceived ?? "0");
      }
    },
    onBreak: () => say("The connection broke; reconnecting.", true),
  });
  abort.signal.addEventListener("abort", () => stream.cancel());
  const { completed } = await stream.run();
  view.downloads(completed.transcript, file.name.replace(/\.[^.]*$/, ""));
  const tookS = (performance.now() - began) / 1000;
  say(`Done: ${audioS.toFixed(1)} s of audio in ${tookS.toFixed(1)} s.`);
}

async function submit(file) {
  say("Uploading …");
  const { uri } = await upload(file, (part) => (progress.value = part), abort.signal);
  const { job } = await call("JobsService/SubmitJob", {
    audio: { uri },
    options: options(),
    labels: { file: file.name.slice(-128) },
    requestId: crypto.randomUUID?.() ?? String(Math.random()),
  });
  remember(job.jobId);
  say("Submitted. It is in the list of jobs.");
  location.hash = "/jobs";
}

async function run(file) {
  if (abort) return;
  abort = new AbortController();
  const { signal } = abort;
  begin.disabled = true;
  cancel.disabled = false;
  progress.value = 0;
  $("file-progress-label").hidden = false;
  try {
    await (form.elements.how.value === "job" ? submit(file) : transcribe(file));
  } catch (error) {
    const text = error instanceof CallError && error.reason ? `${error.message} (${error.reason})` : error.message;
    say(signal.aborted ? "Cancelled." : text, !signal.aborted);
  } finally {
    abort = null;
    begin.disabled = false;
    cancel.disabled = true;
    $("file-progress-label").hidden = true;
  }
}

/** Sets the panel up. */
export function start() {
  form.onsubmit = (event) => {
    event.preventDefault();
    run(input.files[0]);
  };
  cancel.onclick = () => abort?.abort();
  form.ondragover = (event) => {
    event.preventDefault();
    form.classList.add("over");
  };
  form.ondragleave = () => form.classList.remove("over");
  form.ondrop = (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (event.dataTransfer.files.length) input.files = event.dataTransfer.files;
  };
}
