// The same calls from a shell: Node's fetch is the browser's, so this is how the page is tested.
import { readFile } from "node:fs/promises";

import { connect, explain, subtitles, transcribe } from "./typeless.js";

const [command, file, protocol] = process.argv.slice(2);
const address = process.env.TYPELESS_PROXY ?? "http://localhost:50050";
const typeless = connect(address, process.env.TYPELESS_API_KEY ?? "", protocol === "connect" ? "connect" : "grpc-web");
try {
  const recording = new Uint8Array(await readFile(file));
  if (command === "job") {
    process.stdout.write(await subtitles(typeless, recording, (share) => console.error(`${Math.round(share * 100)} %`)));
  } else {
    console.log(await transcribe(typeless, recording));
  }
} catch (failed) {
  console.error(explain(failed));
  process.exitCode = 1;
}
