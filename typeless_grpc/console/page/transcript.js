// Shows segments, the interim and downloads.

import { seconds } from "./bridge.js";

const FILES = {
  OUTPUT_FORMAT_TEXT: ["TXT", "txt", "text/plain"],
  OUTPUT_FORMAT_SRT: ["SRT", "srt", "application/x-subrip"],
  OUTPUT_FORMAT_WEBVTT: ["VTT", "vtt", "text/vtt"],
  OUTPUT_FORMAT_JSON: ["JSON", "json", "application/json"],
};
/** What a request has to name so that there are downloads. */
export const OUTPUT_FORMATS = Object.keys(FILES);
const MAX_SHOWN = 2000; // segments; all are in the downloads

export class TranscriptView {
  #root;
  #list;
  #interim;
  #downloads;
  #copy;
  #texts = [];
  #urls = [];

  constructor(place) {
    this.#root = document.getElementById("transcript-template").content.cloneNode(true).firstElementChild;
    place.replaceChildren(this.#root);
    const find = (selector) => this.#root.querySelector(selector);
    this.#list = find(".segments");
    this.#interim = find(".interim");
    this.#downloads = find(".downloads");
    this.#copy = find(".copy");
    find(".show-times").onchange = ({ target }) => this.#root.classList.toggle("hide-times", !target.checked);
    find(".show-confidence").onchange = ({ target }) => this.#root.classList.toggle("show-numbers", target.checked);
    this.#copy.onclick = async () => {
      await navigator.clipboard?.writeText(this.#texts.join("\n"));
      this.#copy.textContent = "Copied";
      setTimeout(() => (this.#copy.textContent = "Copy"), 2000);
    };
  }

  clear() {
    this.#list.replaceChildren();
    this.#downloads.replaceChildren();
    this.#texts = [];
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
    this.#copy.disabled = true;
    this.interim(null);
  }

  /** Adds a final segment. note: more about it, for people. offsetS: what its times count from. */
  segment(segment, note = "", offsetS = 0) {
    this.interim(null);
    const item = document.createElement("li");
    const times = document.createElement("span");
    times.className = "times";
    const about = [`${clock(offsetS + seconds(segment.startOffset))} – ${clock(offsetS + seconds(segment.endOffset))}`];
    if (segment.confidence !== undefined) about.push(`confidence ${percent(segment.confidence)}`);
    if (segment.language) about.push(segment.language);
    if (segment.channel) about.push(`channel ${segment.channel}`);
    if (note) about.push(note);
    times.textContent = about.join(" · ");
    const text = document.createElement("span");
    text.className = "text";
    if (segment.language) text.lang = segment.language;
    text.append(...shaded(segment));
    item.append(times, text);
    this.#list.append(item);
    if (this.#list.childElementCount > MAX_SHOWN) this.#list.firstElementChild.remove();
    this.#texts.push(segment.text);
    this.#copy.disabled = false;
  }

  /** Shows the hypothesis so far; null hides it. */
  interim(interim) {
    this.#interim.hidden = !interim;
    this.#interim.querySelector(".stable").textContent = interim?.stableText ?? "";
    this.#interim.querySelector(".unstable").textContent = interim?.unstableText ?? "";
  }

  /** Offers the renditions of a transcript. part: if there are several. */
  downloads(transcript, name, part = "") {
    for (const { format, content } of transcript?.renditions ?? []) {
      const [label, extension, type] = FILES[format];
      const url = URL.createObjectURL(new Blob([content ?? ""], { type }));
      this.#urls.push(url);
      const button = document.createElement("button");
      button.type = "button";
      button.className = "quiet";
      button.textContent = `${label}${part}`;
      button.setAttribute("aria-label", `Download ${label}${part}`);
      button.onclick = () => save(url, `${name}${part.trim()}.${extension}`);
      this.#downloads.append(button, " ");
    }
  }

  /** Shows a whole transcript. */
  show(transcript, name) {
    this.clear();
    for (const segment of transcript.segments ?? []) this.segment(segment);
    this.downloads(transcript, name);
  }
}

function save(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

/** The text of a segment, with its words shaded where their confidence is low. */
function* shaded(segment) {
  const text = segment.text ?? "";
  let at = 0;
  for (const word of segment.words ?? []) {
    const start = text.indexOf(word.text, at);
    if (start < 0) continue;
    yield text.slice(at, start);
    yield span(word.text, word.confidence ?? 0, `${clock(seconds(word.startOffset))}, confidence ${percent(word.confidence ?? 0)}`);
    at = start + word.text.length;
  }
  const rest = text.slice(at);
  yield segment.words?.length ? rest : span(rest, segment.confidence ?? 1, "");
}

function span(text, confidence, title) {
  const found = document.createElement("span");
  found.className = confidence < 0.5 ? "c0" : confidence < 0.7 ? "c1" : confidence < 0.85 ? "c2" : "c3";
  found.textContent = text;
  if (title) found.title = title;
  const number = document.createElement("span");
  number.className = "number";
  number.textContent = percent(confidence);
  found.append(number);
  return found;
}

export const percent = (part) => `${Math.round(100 * part)} %`;

/** 3723.4 as 1:02:03.4. */
export function clock(value) {
  const tenths = Math.round(value * 10);
  const [h, m, s] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, (tenths % 600) / 10];
  const two = (n) => String(n).padStart(2, "0");
  return `${h ? `${h}:${two(m)}` : m}:${s.toFixed(1).padStart(4, "0")}`;
}
