// One StreamTranscribe session over as many sockets as it takes.

import { Broken, CallError, UNAVAILABLE, delay, failed, open, room, seconds } from "./bridge.js";

const RESOURCE_EXHAUSTED = 8;

/**
 * A session. source: has `next(offset)`, which resolves to the bytes from there on, or null at the end, and
 * `release(offset)`, which lets it forget the bytes before. onEvent: gets each event once. onBreak: gets called when a
 * connection broke and the session is to be resumed.
 */
export class Stream {
  #config;
  #source;
  #onEvent;
  #onBreak;
  #socket = null;
  #sessionId = "";
  #windowS = 60;
  #sequence = 0;
  #isCancelled = false;
  #update = null; // options that no socket has taken yet

  constructor(config, source, { onEvent, onBreak }) {
    this.#config = config;
    this.#source = source;
    this.#onEvent = onEvent;
    this.#onBreak = onBreak;
  }

  /** Runs to the end. Returns the event `completed`; throws CallError or Broken. */
  async run() {
    let brokenSince = 0;
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.#once(() => ((brokenSince = 0), (attempt = 0)));
      } catch (error) {
        brokenSince ||= Date.now();
        const isOver = Date.now() - brokenSince > this.#windowS * 1000;
        if (this.#isCancelled || !this.#sessionId || isOver || !isTransient(error)) throw error;
        this.#onBreak();
        await delay(1000 * Math.max(error.retryDelayS ?? 0, Math.min(4, 0.25 * 2 ** attempt)));
      }
    }
  }

  /** Ends the current utterance now. */
  finalize() {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#control("STREAM_CONTROL_FINALIZE");
  }

  /** Replaces the options from the next utterance on; answered by the event `configured`. */
  update(options) {
    this.#update = options;
    if (this.#socket?.readyState === WebSocket.OPEN && this.#sessionId) this.#sendUpdate();
  }

  #sendUpdate() {
    if (this.#update) this.#socket.send(JSON.stringify({ update: this.#update }));
    this.#update = null;
  }

  /** Gives up: the server finishes what it has, and nobody reads it. */
  cancel() {
    this.#isCancelled = true;
    this.#socket?.close();
  }

  #control(control) {
    this.#socket.send(JSON.stringify({ control }));
  }

  async #once(onStarted) {
    const socket = (this.#socket = await open("stream"));
    const config = this.#sessionId
      ? { resumeSessionId: this.#sessionId, resumeAfterSequence: String(this.#sequence) }
      : this.#config;
    try {
      return await new Promise((resolve, reject) => {
        socket.onmessage = ({ data }) => {
          const event = JSON.parse(data);
          if (event.error) return reject(failed(event.error));
          if (event.started) {
            this.#sessionId = event.started.sessionId;
            this.#windowS = seconds(event.started.resumeWindow);
            onStarted();
            this.#sendUpdate();
            this.#pump(socket, Number(event.acknowledgedBytes ?? 0)).catch(reject);
          }
          this.#source.release(Number(event.acknowledgedBytes ?? 0));
          if (event.sequence) {
            if (Number(event.sequence) <= this.#sequence) return;
            this.#sequence = Number(event.sequence);
          }
          this.#onEvent(event);
          if (event.completed) resolve(event);
        };
        socket.onclose = () => reject(new Broken("The connection broke."));
        socket.send(JSON.stringify({ config }));
      });
    } finally {
      socket.close();
    }
  }

  async #pump(socket, offset) {
    for (;;) {
      const data = await this.#source.next(offset);
      if (socket !== this.#socket) return;
      await room(socket);
      if (data === null) return this.#control("STREAM_CONTROL_END");
      socket.send(data);
      offset += data.byteLength;
    }
  }
}

function isTransient(error) {
  if (error instanceof Broken) return true;
  if (!(error instanceof CallError)) return false;
  return error.code === UNAVAILABLE || (error.code === RESOURCE_EXHAUSTED && error.retryDelayS !== null);
}

/** A file as a source. */
export class FileSource {
  constructor(file) {
    this.file = file;
  }
  async next(offset) {
    if (offset >= this.file.size) return null;
    return this.file.slice(offset, offset + 128 * 1024).arrayBuffer();
  }
  release() {}
}

/** Live audio as a source: keeps what the server has not acknowledged, up to maxBytes. */
export class LiveSource {
  #chunks = []; // [offset, Uint8Array]
  #end = 0;
  #kept = 0;
  #isEnded = false;
  #waiting = [];
  #maxBytes;

  constructor(maxBytes) {
    this.#maxBytes = maxBytes;
  }

  get length() {
    return this.#end;
  }

  /** Adds audio. Returns false once too much of it waits for the server. */
  push(data) {
    if (this.#isEnded) return true;
    this.#chunks.push([this.#end, data]);
    this.#end += data.byteLength;
    this.#kept += data.byteLength;
    this.#wake();
    return this.#kept <= this.#maxBytes;
  }

  end() {
    this.#isEnded = true;
    this.#wake();
  }

  #wake() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  async next(offset) {
    while (offset >= this.#end) {
      if (this.#isEnded) return null;
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    const [start, data] = this.#chunks.find(([start, data]) => offset < start + data.byteLength);
    return data.subarray(offset - start);
  }

  release(offset) {
    while (this.#chunks.length && this.#chunks[0][0] + this.#chunks[0][1].byteLength <= offset) {
      this.#kept -= this.#chunks.shift()[1].byteLength;
    }
  }

  /** Counts from here on: the audio before this offset belongs to a session that has ended. */
  rebase(offset) {
    this.release(offset);
    this.#chunks = this.#chunks.map(([start, data]) =>
      start < offset ? [0, data.subarray(offset - start)] : [start - offset, data],
    );
    this.#kept = this.#chunks.reduce((sum, [, data]) => sum + data.byteLength, 0);
    this.#end = Math.max(0, this.#end - offset);
  }
}
