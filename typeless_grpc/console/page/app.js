// The console page. Each tab is a module with `start`, and `show` and `hide` if it works only while it is seen.

import { UNAUTHENTICATED, call, key } from "./bridge.js";
import * as files from "./files.js";
import * as jobs from "./jobs.js";
import * as live from "./live.js";
import * as models from "./models.js";
import { readModels } from "./options.js";
import * as server from "./server.js";

const TABS = { live, files, jobs, models, server };
const $ = (id) => document.getElementById(id);

// ---- tabs -----------------------------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll('[role="tab"]')];
let current = "";

/** The tab of the address. "#/jobs" is no id of an element: it must neither scroll there nor move the focus. */
function wanted() {
  const name = location.hash.slice(2);
  return name in TABS ? name : "live";
}

function select(name) {
  if (name === current || !(name in TABS)) return;
  if (current) TABS[current].hide?.();
  current = name;
  for (const tab of tabs) {
    const isOn = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(isOn));
    tab.tabIndex = isOn ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isOn;
  }
  $("options").hidden = !["live", "files"].includes(name);
  if (wanted() !== name) history.replaceState(null, "", `#/${name}`);
  TABS[name].show?.();
}

for (const [index, tab] of tabs.entries()) {
  tab.onclick = () => select(tab.getAttribute("aria-controls"));
  tab.onkeydown = (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    next.focus();
    next.click();
  };
}
addEventListener("hashchange", () => select(wanted()));

// ---- the key --------------------------------------------------------------------------------------------------------

const dialog = $("key-dialog");

function describeKey() {
  $("key-button").textContent = key.get() ? `Key: ${key.get().slice(0, 4)}…` : "Key: none";
}

function askForKey(why = "") {
  $("key-error").textContent = why;
  $("key").value = key.get();
  if (!dialog.open) dialog.showModal();
}

$("key-button").onclick = () => askForKey();
$("key-form").onsubmit = (event) => {
  const value = $("key").value.trim();
  if (event.submitter?.value !== "ok") return;
  if (!/^[\x21-\x7e]*$/.test(value)) {
    event.preventDefault();
    $("key-error").textContent = "A key has only letters, digits and signs of ASCII, without spaces.";
    return;
  }
  key.set(value);
  describeKey();
  connect();
};
addEventListener("key-needed", ({ detail }) => askForKey(detail));

// ---- the server -----------------------------------------------------------------------------------------------------

async function connect() {
  try {
    const info = await call("ServerService/GetServerInfo");
    $("server-line").textContent = `Version ${info.version}, model ${info.defaultModel}`;
    server.facts(info);
    await readModels();
    TABS[current]?.show?.();
  } catch (error) {
    if (error.code !== UNAUTHENTICATED) $("server-line").textContent = error.message;
  }
}

for (const tab of Object.values(TABS)) tab.start?.();
describeKey();
select(wanted());
connect();
