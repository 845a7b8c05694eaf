// What the server does now, and its limits.

import { failed, key, seconds } from "./bridge.js";

const EVERY_MS = 5000; // it is charged as a call of the group `config`
const WINDOW_S = 60; // over which waits and latencies are counted
const LANES = {
  live_final: "Live finals",
  live_interim: "Live interims",
  unary: "Calls and streamed recordings",
  batch: "Batches",
  jobs: "Jobs",
};
const $ = (id) => document.getElementById(id);
const state = $("activity-state");
let timer = 0;
let readings = []; // the oldest first

async function read() {
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  const answer = await fetch("v1/activity", { headers });
  if (!answer.ok) throw failed(await answer.json().catch(() => ({})));
  return answer.json();
}

export async function show() {
  clearTimeout(timer);
  try {
    const now = await read();
    readings = [...readings.filter(({ time }) => time > now.time - WINDOW_S), now];
    draw(now, readings[0]);
    state.textContent = "";
    state.classList.remove("bad");
  } catch (error) {
    state.textContent = error.message;
    state.classList.add("bad");
  }
  if (!$("server").hidden) timer = setTimeout(show, EVERY_MS);
}

export function hide() {
  clearTimeout(timer);
  readings = [];
}

function draw(now, before) {
  const gauge = (name) => now.gauges[name]?.[""] ?? 0;
  const lag = since(now, before, "typeless_event_loop_lag_seconds", "");
  const live = since(now, before, "typeless_final_latency_seconds", "live");
  const span = Math.round(now.time - before.time);
  const over = span ? `last ${span} s` : "since the start";
  list($("activity"), [
    ["Streams open", gauge("typeless_streams_open")],
    ["Sessions kept", gauge("typeless_sessions_kept")],
    ["Work in the queue", `${gauge("typeless_engine_backlog_seconds").toFixed(1)} s`],
    ["Audio held", `${minutes(gauge("typeless_held_audio_seconds"))} of ${minutes(gauge("typeless_held_audio_limit_seconds"))}`],
    [`Live final, median (${over})`, time(quantile(live, 0.5))],
    [`Live final, 95 % (${over})`, time(quantile(live, 0.95))],
    [`Event loop late, 95 % (${over})`, time(quantile(lag, 0.95))],
  ]);
  const depths = now.gauges.typeless_queue_depth ?? {};
  $("lanes").replaceChildren(
    ...Object.entries(depths).map(([lane, depth]) => {
      const waits = since(now, before, "typeless_queue_wait_seconds", lane);
      return row([LANES[lane] ?? lane, depth, time(quantile(waits, 0.5)), time(quantile(waits, 0.95))]);
    }),
  );
}

/** The counts by bound between two readings; all since the start if there is one reading only. */
function since(now, before, name, label) {
  const [last, first] = [now, before].map((reading) => reading.histograms[name]?.[label] ?? {});
  const isOne = now === before;
  return Object.entries(last).map(([bound, n]) => [bound === "+Inf" ? Infinity : Number(bound), n - (isOne ? 0 : (first[bound] ?? 0))]);
}

/** The bound below which this part of the observations is; null without any. */
function quantile(counts, part) {
  const sorted = counts.sort(([a], [b]) => a - b);
  const total = sorted.at(-1)?.[1] ?? 0;
  if (!total) return null;
  return sorted.find(([, n]) => n >= part * total)[0];
}

const time = (value) =>
  value === null ? "–" : value === Infinity ? "more" : value < 1 ? `≤ ${Math.round(1000 * value)} ms` : `≤ ${value} s`;
const minutes = (value) =>
  value < 120 ? `${value.toFixed(0)} s` : value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;

function list(place, pairs) {
  place.replaceChildren(
    ...pairs.map(([name, value]) => {
      const group = document.createElement("div");
      const [term, description] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      description.textContent = value;
      group.append(term, description);
      return group;
    }),
  );
}

function row(cells) {
  const made = document.createElement("tr");
  for (const [index, text] of cells.entries()) {
    const cell = document.createElement(index ? "td" : "th");
    if (!index) cell.scope = "row";
    cell.textContent = text;
    made.append(cell);
  }
  return made;
}

/** Shows GetServerInfoResponse. */
export function facts(info) {
  const size = (bytes) => (Number(bytes) ? `${Math.round(Number(bytes) / 2 ** 20)} MiB` : "none");
  list($("facts"), [
    ["Version", info.version],
    ["Default model", info.defaultModel],
    ["Key", info.requiresKey ? "required" : "not required"],
    ["Recording", `up to ${minutes(seconds(info.maxAudioDuration))}`],
    ["Stream", `up to ${minutes(seconds(info.maxStreamDuration))}`],
    ["Upload", `up to ${size(info.maxUploadBytes)}`],
    ["Resume window", `${seconds(info.resumeWindow)} s`],
  ]);
}
