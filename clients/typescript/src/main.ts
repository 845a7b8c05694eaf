// The five things that callers of typeless-grpc do most.

import { Metadata, ServiceError } from "@grpc/grpc-js";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { AudioEncoding, AudioSource } from "../gen/typeless/v1/audio";
import { Job, JobsServiceClient, SubmitJobRequest, WatchJobRequest } from "../gen/typeless/v1/jobs";
import { OutputFormat } from "../gen/typeless/v1/transcript";
import {
  BatchTranscribeRequest,
  StreamConfig,
  StreamTranscribeRequest,
  StreamTranscribeResponse,
  TranscribeRequest,
  TranscriptionOptions,
  TranscriptionServiceClient,
} from "../gen/typeless/v1/transcription";
import { channelCredentials, channelOptions, explain, withRetries, target, tenMinutes } from "./calls";

const USAGE = `usage: npm start -- COMMAND FILE...
  transcribe FILE   print the text
  stream FILE       send raw samples (16 kHz, 16 bits, mono) at the pace of speech
  batch FILE...     several recordings in one call
  job FILE          transcribe in the background, print subtitles
  error FILE        send an invalid request, show the error details
TYPELESS_SERVER (localhost:50051) and TYPELESS_API_KEY are read from the environment.`;

const transcription = new TranscriptionServiceClient(target, channelCredentials, channelOptions);
const jobs = new JobsServiceClient(target, channelCredentials, channelOptions);

async function audio(file: string): Promise<AudioSource> {
  return AudioSource.fromPartial({ source: { $case: "content", value: await readFile(file) } });
}

async function transcribe(file: string, options?: TranscriptionOptions): Promise<void> {
  const request = TranscribeRequest.fromPartial({ audio: await audio(file), options });
  const response = await withRetries(transcription.transcribe.bind(transcription), request);
  console.log(response.transcript!.text);
}

async function stream(file: string): Promise<void> {
  const call = transcription.streamTranscribe(new Metadata(), tenMinutes());
  const config = StreamConfig.fromPartial({
    format: { encoding: AudioEncoding.AUDIO_ENCODING_PCM_S16LE, sampleRateHertz: 16_000 },
    interimResults: true,
  });
  call.write(StreamTranscribeRequest.fromPartial({ request: { $case: "config", value: config } }));
  const sending = new AbortController();
  void sendAtThePaceOfSpeech(call, file, sending.signal).catch((error) => call.destroy(error));
  try {
    for await (const { event } of call as AsyncIterable<StreamTranscribeResponse>) {
      if (event?.$case === "interim") console.log(`interim: ${event.value.stableText}${event.value.unstableText}`);
      if (event?.$case === "segment") console.log(`final: ${event.value.text}`);
      if (event?.$case === "warning") console.error(`warning: ${event.value.message}`);
    }
  } finally {
    sending.abort();
  }
}

/** Sends a tenth of a second every tenth of a second. Where sending fails, reading tells why. */
async function sendAtThePaceOfSpeech(
  call: ReturnType<TranscriptionServiceClient["streamTranscribe"]>,
  file: string,
  signal: AbortSignal,
): Promise<void> {
  for await (const value of createReadStream(file, { highWaterMark: 3200 })) {
    if (signal.aborted) return;
    const hasRoom = call.write(StreamTranscribeRequest.fromPartial({ request: { $case: "audio", value } }));
    if (!hasRoom) await once(call, "drain");
    await sleep(100);
  }
  call.end();
}

async function batch(files: string[]): Promise<void> {
  const items = await Promise.all(files.map(async (file) => ({ name: basename(file), audio: await audio(file) })));
  const request = BatchTranscribeRequest.fromPartial({ items });
  const response = await withRetries(transcription.batchTranscribe.bind(transcription), request);
  for (const { name, outcome } of response.results) {
    if (outcome?.$case === "transcript") console.log(`${name}: ${outcome.value.text}`);
    if (outcome?.$case === "failure") console.log(`${name}: failed: ${outcome.value.reason}`);
  }
  console.log(`${response.summary!.succeeded} of ${response.summary!.total} succeeded`);
}

async function job(file: string): Promise<void> {
  const request = SubmitJobRequest.fromPartial({
    audio: await audio(file),
    options: { outputFormats: [OutputFormat.OUTPUT_FORMAT_SRT] },
    // Sent again after a break, the job is still made once.
    requestId: randomUUID(),
  });
  const submitted = await withRetries(jobs.submitJob.bind(jobs), request);
  let last: Job = submitted.job!;
  const watch = jobs.watchJob(WatchJobRequest.fromPartial({ jobId: last.jobId }), new Metadata(), tenMinutes());
  for await (const response of watch) {
    last = response.job;
    console.error(`${last.state.replace("JOB_STATE_", "")} ${Math.round(last.progress * 100)} %`);
  }
  if (last.failure) throw new Error(`${last.failure.reason}: ${last.failure.message}`);
  for (const { content } of last.transcript?.renditions ?? []) process.stdout.write(content);
}

const impossible = TranscriptionOptions.fromPartial({ decoding: { beamSize: 99 } });

const commands: Record<string, (files: string[]) => Promise<void>> = {
  transcribe: ([file]) => transcribe(file),
  stream: ([file]) => stream(file),
  batch,
  job: ([file]) => job(file),
  error: ([file]) => transcribe(file, impossible),
};

async function main([command, ...files]: string[]): Promise<number> {
  if (!(command in commands) || files.length === 0) {
    console.error(USAGE);
    return 2;
  }
  try {
    await commands[command](files);
    return 0;
  } catch (error) {
    explain(error as ServiceError);
    return 1;
  }
}

void main(process.argv.slice(2)).then((code) => {
  transcription.close();
  jobs.close();
  process.exitCode = code;
});
