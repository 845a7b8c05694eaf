// Turns the microphone's samples into 16-bit PCM, in blocks of about 40 ms.

class Capture extends AudioWorkletProcessor {
  #block = new Int16Array(Math.round(sampleRate * 0.04));
  #n = 0;
  #peak = 0;

  process([channels]) {
    const samples = channels[0];
    if (!samples) return true;
    for (const sample of samples) {
      const clipped = Math.max(-1, Math.min(1, sample));
      this.#block[this.#n++] = clipped < 0 ? clipped * 0x8000 : clipped * 0x7fff;
      this.#peak = Math.max(this.#peak, Math.abs(clipped));
      if (this.#n === this.#block.length) {
        const data = this.#block.slice().buffer;
        this.port.postMessage({ data, peak: this.#peak }, [data]);
        this.#n = 0;
        this.#peak = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
