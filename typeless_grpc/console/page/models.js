// The models: what is loaded, and loading and unloading for admins.

import { CallError, call } from "./bridge.js";
import { readModels } from "./options.js";

const $ = (id) => document.getElementById(id);
const [list, state] = ["model-list", "models-state"].map($);

function say(text, isBad = false) {
  state.textContent = text;
  state.classList.toggle("bad", isBad);
}

export async function show() {
  try {
    list.replaceChildren(...(await readModels()).map(card));
  } catch (error) {
    say(error.message, true);
  }
}

function card(model) {
  const item = document.createElement("li");
  const title = document.createElement("h3");
  title.textContent = model.name;
  for (const [isSo, label, kind] of [
    [model.loaded, "loaded", "done"],
    [model.isDefault, "default", ""],
  ]) {
    if (!isSo) continue;
    const badge = document.createElement("span");
    badge.className = `badge ${kind}`;
    badge.textContent = label;
    title.append(badge);
  }
  const n = model.languages?.length ?? 0;
  const facts = n ? [model.multilingual ? `${n} languages` : model.languages.join(", ")] : ["not loaded"];
  if (model.loaded) {
    facts.push(`${model.device}, ${model.computeType}`, `${Math.round(Number(model.memoryBytes ?? 0) / 2 ** 20)} MiB`);
  }
  const about = document.createElement("p");
  about.className = "muted";
  about.textContent = facts.join(" · ");
  item.append(title, about);
  if (!model.isDefault) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = model.loaded ? "Unload" : "Load";
    button.setAttribute("aria-label", `${button.textContent} ${model.name}`);
    button.onclick = () => change(model, button);
    item.append(button);
  }
  return item;
}

async function change({ name, loaded }, button) {
  button.disabled = true;
  say(`${loaded ? "Unloading" : "Loading"} ${name} …`);
  try {
    await call(`ModelService/${loaded ? "UnloadModel" : "LoadModel"}`, { name });
    say(`${name} is ${loaded ? "unloaded" : "loaded"}.`);
    await show();
    list.querySelector(`button[aria-label$=" ${CSS.escape(name)}"]`)?.focus();
  } catch (error) {
    say(error instanceof CallError && error.reason ? `${error.message} (${error.reason})` : error.message, true);
    button.disabled = false;
  }
}

/** Sets the panel up. */
export function start() {
  $("models-refresh").onclick = show;
}
