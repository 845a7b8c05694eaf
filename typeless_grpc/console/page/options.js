// The options of every call, from the form.

import { call } from "./bridge.js";
import { OUTPUT_FORMATS } from "./transcript.js";

const form = document.getElementById("options-form");
const summary = document.getElementById("options-summary");
let models = [];

/** TranscriptionOptions in JSON. */
export function options() {
  const { language, model, task, mode, hotwords, endSilence, words, profanity } = form.elements;
  const found = { outputFormats: OUTPUT_FORMATS };
  if (language.value) found.language = language.value;
  if (model.value) found.model = model.value;
  if (task.value) found.task = task.value;
  const expected = hotwords.value.split(",").map((word) => word.trim()).filter(Boolean);
  if (expected.length) found.hotwords = expected;
  if (words.checked) found.wordTimestamps = true;
  if (endSilence.value) found.voiceActivity = { endSilence: `${Number(endSilence.value)}s` };
  if (mode.value || profanity.checked) {
    found.postProcessing = { maskProfanity: profanity.checked };
    if (mode.value) found.postProcessing.mode = mode.value;
  }
  return found;
}

/** Calls a function when the options have changed. */
export const onOptions = (callback) => form.addEventListener("change", callback);

/** Lists the models, and fills the form with them and their languages. */
export async function readModels() {
  models = (await call("ModelService/ListModels")).models ?? [];
  const { model } = form.elements;
  const chosen = model.value;
  const byDefault = models.find((one) => one.isDefault);
  model.replaceChildren(new Option(`Default (${byDefault?.name ?? "?"})`, ""));
  for (const { name } of models) model.add(new Option(name, name));
  model.value = models.some(({ name }) => name === chosen) ? chosen : "";
  fillLanguages();
  return models;
}

function fillLanguages() {
  const { language, model, task } = form.elements;
  const current = models.find((one) => (model.value ? one.name === model.value : one.isDefault));
  const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
  const known = (current?.languages ?? []).map((tag) => [names.of(tag), tag]).sort(([a], [b]) => a.localeCompare(b));
  const chosen = language.value;
  language.replaceChildren(new Option("Detect", ""));
  for (const [name, tag] of known) language.add(new Option(name, tag));
  language.value = known.some(([, tag]) => tag === chosen) ? chosen : "";
  task.options[1].disabled = current !== undefined && !current.multilingual;
  if (task.options[1].disabled) task.value = "";
  describe();
}

function describe() {
  const label = (element) => element.selectedOptions[0]?.textContent ?? "";
  const { language, model, task, mode } = form.elements;
  const chosen = [language.value ? label(language) : "language detected", model.value || "default model"];
  if (task.value) chosen.push("translated");
  if (mode.value) chosen.push("edited");
  summary.textContent = chosen.join(", ");
}

form.addEventListener("change", ({ target }) => (target === form.elements.model ? fillLanguages() : describe()));
form.onsubmit = (event) => event.preventDefault();
describe();
