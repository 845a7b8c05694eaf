// The microphone as 16-bit mono PCM.

const RATE_HZ = 16000;

/** Whether the browser lets this page use a microphone, and why not. */
export function whyNoMicrophone() {
  if (!isSecureContext) {
    return (
      `Browsers allow the microphone only over HTTPS, or at http://localhost. This page came from ${location.origin}: ` +
      "put the console behind a proxy with TLS, or forward its port to your machine. Recordings work here all the same."
    );
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return "This browser has no microphone for pages.";
  return "";
}

/** Records until stop(). onBlock: gets {data: ArrayBuffer, peak} every 40 ms. */
export class Microphone {
  #context = null;
  #media = null;

  /** Starts. Returns the rate in Hz. Throws an Error with a sentence for people. */
  async start(deviceId, onBlock) {
    const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: true };
    if (deviceId) audio.deviceId = { exact: deviceId };
    try {
      this.#media = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new Error(PROBLEMS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    try {
      await this.#connect(new AudioContext({ sampleRate: RATE_HZ }), onBlock);
    } catch {
      // Firefox cannot convert the rate of a microphone; the server can.
      await this.#context?.close();
      await this.#connect(new AudioContext(), onBlock);
    }
    return this.#context.sampleRate;
  }

  async #connect(context, onBlock) {
    this.#context = context;
    await context.audioWorklet.addModule(new URL("capture.worklet.js", import.meta.url));
    const capture = new AudioWorkletNode(context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    capture.port.onmessage = ({ data }) => onBlock(data);
    context.createMediaStreamSource(this.#media).connect(capture);
    await context.resume();
  }

  async stop() {
    for (const track of this.#media?.getTracks() ?? []) track.stop();
    await this.#context?.close();
    this.#media = this.#context = null;
  }
}

const PROBLEMS = {
  NotAllowedError: "The browser did not allow the microphone. Allow it for this page, and start again.",
  NotFoundError: "This machine has no microphone.",
  NotReadableError: "Another program uses the microphone.",
};

/** The microphones, with their names once one was allowed. */
export async function microphones() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices.filter((one) => one.kind === "audioinput" && one.deviceId && one.deviceId !== "default");
}
