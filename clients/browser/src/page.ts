// The page: a recording is chosen, its text appears.
import { connect, explain, transcribe } from "./typeless.js";

const find = (id: string) => document.getElementById(id) as HTMLInputElement;

find("recording").addEventListener("change", async () => {
  const recording = find("recording").files?.[0];
  const text = find("text");
  if (!recording) return;
  text.textContent = "…";
  try {
    const typeless = connect(find("address").value, find("key").value);
    text.textContent = await transcribe(typeless, new Uint8Array(await recording.arrayBuffer()));
  } catch (failed) {
    text.textContent = explain(failed);
  }
});
