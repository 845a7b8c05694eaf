// Jobs: the list, their progress, and what to do with them.

import { CallError, call, watch } from "./bridge.js";
import { TranscriptView, clock, percent } from "./transcript.js";

const WATCHED = 3; // a browser opens six connections to a server; the rest of the list is read again
const REFRESH_MS = 10_000;
const PAGE_SIZE = 20;
const MINE = "typeless.jobs"; // callers without a key cannot list jobs, but know those they submitted

const STATES = {
  JOB_STATE_PENDING: ["waits", ""],
  JOB_STATE_PROCESSING: ["runs", ""],
  JOB_STATE_COMPLETED: ["done", "done"],
  JOB_STATE_FAILED: ["failed", "bad"],
  JOB_STATE_CANCELLED: ["cancelled", ""],
};
const $ = (id) => document.getElementById(id);
const [list, more, state] = ["job-list", "jobs-more", "jobs-state"].map($);
const items = new Map(); // job id to its element and its watch
let view = null;
let timer = 0;

const isActive = (job) => ["JOB_STATE_PENDING", "JOB_STATE_PROCESSING"].includes(job.state);
const mine = () => JSON.parse(sessionStorage.getItem(MINE) ?? "[]");

/** Keeps the id of a submitted job for as long as this tab is open. */
export function remember(id) {
  sessionStorage.setItem(MINE, JSON.stringify([id, ...mine()].slice(0, 50)));
}

function say(text, isBad = false) {
  state.textContent = text;
  state.classList.toggle("bad", isBad);
}

const sentence = (error) => (error instanceof CallError && error.reason ? `${error.message} (${error.reason})` : error.message);

/** Reads the list. */
export async function show() {
  clearTimeout(timer);
  try {
    const page = await call("JobsService/ListJobs", { pageSize: PAGE_SIZE });
    const jobs = page.jobs ?? [];
    for (const id of mine().filter((id) => !jobs.some((job) => job.jobId === id))) {
      const got = await call("JobsService/GetJob", { jobId: id }).catch(() => null);
      if (got) jobs.push(got.job);
      else sessionStorage.setItem(MINE, JSON.stringify(mine().filter((one) => one !== id)));
    }
    for (const id of items.keys()) if (!jobs.some((job) => job.jobId === id)) remove(id);
    list.replaceChildren(...jobs.map(put));
    offerMore(page.nextPageToken);
    say(jobs.length ? "" : "No jobs yet. Submit one under Recordings.");
  } catch (error) {
    say(sentence(error), true);
  }
  if (!$("jobs").hidden && [...items.values()].some((one) => isActive(one.job) && !one.watching)) {
    timer = setTimeout(show, REFRESH_MS);
  }
}

function offerMore(token) {
  more.hidden = !token;
  more.onclick = async () => {
    const page = await call("JobsService/ListJobs", { pageSize: PAGE_SIZE, pageToken: token });
    list.append(...(page.jobs ?? []).map(put));
    offerMore(page.nextPageToken);
  };
}

/** Stops what runs while the list is shown. */
export function hide() {
  clearTimeout(timer);
  for (const one of items.values()) one.watching?.abort();
}

function remove(id) {
  const one = items.get(id);
  one?.watching?.abort();
  one?.element.remove();
  items.delete(id);
}

function put(job) {
  const one = items.get(job.jobId) ?? { element: document.createElement("li"), watching: null };
  one.job = job;
  items.set(job.jobId, one);
  draw(one);
  const n = [...items.values()].filter(({ watching }) => watching).length;
  if (isActive(job) && !one.watching && n < WATCHED) follow(one);
  return one.element;
}

async function follow(one) {
  one.watching = new AbortController();
  try {
    // Past the last segment, so that none comes: the job is all that is shown.
    const request = { jobId: one.job.jobId, nextSegmentIndex: 2 ** 31 - 1 };
    for await (const { job } of watch("JobsService/WatchJob", request, one.watching.signal)) {
      one.job = job;
      draw(one);
    }
  } catch (error) {
    if (error.name !== "AbortError") say(sentence(error), true);
  } finally {
    one.watching = null;
  }
}

function draw({ element, job }) {
  const [label, kind] = STATES[job.state] ?? ["?", ""];
  const name = job.labels?.file ?? job.jobId;
  const title = document.createElement("h3");
  const badge = document.createElement("span");
  badge.className = `badge ${kind}`;
  badge.textContent = label;
  title.append(name, badge);
  const facts = [new Date(job.createTime).toLocaleString()];
  if (job.audioDuration) facts.push(`${clock(Number.parseFloat(job.audioDuration))} of audio`);
  if (job.stats?.processingTime) facts.push(`took ${Number.parseFloat(job.stats.processingTime).toFixed(1)} s`);
  if (job.failure) facts.push(`${job.failure.message} (${job.failure.reason})`);
  const about = document.createElement("p");
  about.className = "muted";
  about.textContent = facts.join(" · ");
  const parts = [title, about];
  if (isActive(job)) {
    const bar = document.createElement("progress");
    bar.max = 1;
    bar.value = job.progress ?? 0;
    bar.setAttribute("aria-label", `Progress of ${name}`);
    const text = document.createElement("p");
    text.className = "muted";
    text.textContent = `${percent(job.progress ?? 0)} ${job.progressMessage ?? ""}`;
    parts.push(bar, text);
  }
  const actions = document.createElement("p");
  actions.className = "bar";
  if (job.state === "JOB_STATE_COMPLETED") actions.append(button("Show text", name, () => open(job)));
  if (isActive(job)) actions.append(button("Cancel", name, () => act("CancelJob", job)));
  else actions.append(button("Delete", name, () => act("DeleteJob", job)));
  parts.push(actions);
  // Keep the focus on a button that is drawn again.
  const focused = element.contains(document.activeElement) ? document.activeElement.textContent : "";
  element.replaceChildren(...parts);
  if (focused) [...element.querySelectorAll("button")].find((one) => one.textContent === focused)?.focus();
}

function button(label, name, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = label;
  made.setAttribute("aria-label", `${label}: ${name}`);
  made.onclick = onClick;
  return made;
}

async function act(method, job) {
  try {
    const answer = await call(`JobsService/${method}`, { jobId: job.jobId });
    if (answer.job) put(answer.job);
    else remove(job.jobId);
    say(method === "DeleteJob" ? "Deleted." : "Cancelled.");
  } catch (error) {
    say(sentence(error), true);
  }
}

async function open({ jobId, labels }) {
  try {
    const { job } = await call("JobsService/GetJob", { jobId });
    view ??= new TranscriptView($("job-transcript"));
    view.show(job.transcript ?? {}, labels?.file?.replace(/\.[^.]*$/, "") ?? jobId);
    $("job-transcript").scrollIntoView();
  } catch (error) {
    say(sentence(error), true);
  }
}

/** Sets the panel up. */
export function start() {
  $("jobs-refresh").onclick = show;
}
