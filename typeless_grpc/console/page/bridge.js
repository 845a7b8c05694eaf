// Calls to the server, as docs/console.md describes them: protobuf JSON over HTTP and WebSocket.

const KEY = "typeless.key";
const BEARER = "base64url.bearer.authorization.typeless.";
export const UNAVAILABLE = 14;
export const UNAUTHENTICATED = 16;

/** How a call failed: a google.rpc.Status in JSON. */
export class CallError extends Error {
  constructor(status) {
    super(status.message || "The call failed.");
    this.code = status.code ?? 2;
    const detail = (name) => (status.details ?? []).find((one) => one["@type"]?.endsWith(`google.rpc.${name}`));
    this.reason = detail("ErrorInfo")?.reason ?? "";
    this.retryDelayS = seconds(detail("RetryInfo")?.retryDelay) || null;
  }
}

/** The error for a Status. If the key is at fault, the page requests another one. */
export function failed(status) {
  const error = new CallError(status);
  if (error.code === UNAUTHENTICATED) dispatchEvent(new CustomEvent("key-needed", { detail: error.message }));
  return error;
}

/** The connection broke. */
export class Broken extends Error {}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

function headers() {
  const found = { "content-type": "application/json" };
  if (key.get()) found.authorization = `Bearer ${key.get()}`;
  return found;
}

async function post(path, request, signal) {
  let answer;
  try {
    answer = await fetch(`v1/${path}`, { method: "POST", headers: headers(), body: JSON.stringify(request), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Broken("The server cannot be reached.");
  }
  if (!answer.ok) {
    throw failed(await answer.json().catch(() => ({ message: `The server answered ${answer.status}.` })));
  }
  return answer;
}

/** Makes a call with one request and one response: call("JobsService/GetJob", {jobId}). */
export async function call(path, request = {}) {
  return (await post(path, request)).json();
}

/** Yields the responses of a call that streams them. */
export async function* watch(path, request, signal) {
  const reader = (await post(path, request, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const { result, error } = JSON.parse(line);
      if (error) throw failed(error);
      yield result;
    }
  }
}

/** Opens a WebSocket for a call that streams requests. Resolves once it is open. */
export function open(path) {
  const url = new URL(`v1/${path}`, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  const protocols = ["typeless.v1"];
  if (key.get()) protocols.push(BEARER + base64url(key.get()));
  const socket = new WebSocket(url, protocols);
  socket.binaryType = "arraybuffer";
  return new Promise((resolve, reject) => {
    socket.onopen = () => resolve(socket);
    socket.onclose = socket.onerror = () => reject(new Broken("The server cannot be reached."));
  });
}

function base64url(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** Waits until the socket's buffer has room, so that no recording is copied into memory. Throws Broken. */
export async function room(socket, bytes = 512 * 1024) {
  while (socket.bufferedAmount > bytes) {
    if (socket.readyState !== WebSocket.OPEN) throw new Broken("The connection broke.");
    await delay(30);
  }
  if (socket.readyState !== WebSocket.OPEN) throw new Broken("The connection broke.");
}

export const delay = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The seconds of a google.protobuf.Duration in JSON: "1.5s". */
export const seconds = (duration) => Number.parseFloat(duration ?? "0") || 0;

/** Uploads a file in chunks. onProgress: gets the fraction that is sent. Returns the upload. */
export async function upload(file, onProgress, signal) {
  const socket = await open("UploadService/UploadAudio");
  const answer = new Promise((resolve, reject) => {
    let last = null;
    socket.onmessage = ({ data }) => (last = JSON.parse(data));
    socket.onclose = () => {
      if (last?.upload) resolve(last.upload);
      else reject(last?.error ? failed(last.error) : new Broken("The connection broke."));
    };
  });
  answer.catch(() => {});
  signal.addEventListener("abort", () => socket.close());
  try {
    socket.send(JSON.stringify({ header: { filename: file.name.slice(-255) } }));
    const size = 256 * 1024;
    for (let at = 0; at < file.size; at += size) {
      await room(socket);
      socket.send(await file.slice(at, at + size).arrayBuffer());
      onProgress(Math.min(1, (at + size) / file.size));
    }
    socket.send(JSON.stringify({ finish: {} }));
    socket.send(""); // half-closes the call
  } catch (error) {
    if (!(error instanceof Broken)) throw error; // the answer has the cause
  }
  return answer;
}
