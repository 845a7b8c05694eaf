// The calls of a page, through a proxy for gRPC-Web or Connect.
import { type Client, Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { JobsService, JobState } from "../gen/typeless/v1/jobs_pb.js";
import { OutputFormat } from "../gen/typeless/v1/transcript_pb.js";
import { TranscriptionService } from "../gen/typeless/v1/transcription_pb.js";

const TIMEOUT_MS = 600_000;

export interface Typeless {
  transcription: Client<typeof TranscriptionService>;
  jobs: Client<typeof JobsService>;
}

/** address: of the proxy. Users can read the key in their page, so give each user one that expires. */
export function connect(address: string, key: string, protocol: "grpc-web" | "connect" = "grpc-web"): Typeless {
  const withKey: Interceptor = (next) => (request) => {
    request.header.set("x-api-key", key);
    return next(request);
  };
  const options = { baseUrl: address, interceptors: [withKey], defaultTimeoutMs: TIMEOUT_MS, useBinaryFormat: true };
  const transport = protocol === "connect" ? createConnectTransport(options) : createGrpcWebTransport(options);
  return { transcription: createClient(TranscriptionService, transport), jobs: createClient(JobsService, transport) };
}

export async function transcribe(typeless: Typeless, recording: Uint8Array): Promise<string> {
  const answer = await typeless.transcription.transcribe({
    audio: { source: { case: "content", value: recording } },
  });
  return answer.transcript?.text ?? "";
}

/** Subtitles from a job, with progress: for recordings that take longer than a page may wait. */
export async function subtitles(
  typeless: Typeless,
  recording: Uint8Array,
  progress: (share: number) => void,
): Promise<string> {
  const submitted = await typeless.jobs.submitJob({
    audio: { source: { case: "content", value: recording } },
    options: { outputFormats: [OutputFormat.SRT] },
    requestId: crypto.randomUUID(), // submitting it again creates no second job
  });
  // Read to the end: an unfinished answer keeps its connection.
  let last = submitted.job;
  for await (const change of typeless.jobs.watchJob({ jobId: submitted.job?.jobId })) {
    last = change.job;
    progress(last?.progress ?? 0);
  }
  if (last?.failure) throw new Error(`${last.failure.reason}: ${last.failure.message}`);
  if (last?.state !== JobState.COMPLETED) throw new Error("the job was cancelled");
  return last.transcript?.renditions[0]?.content ?? "";
}

/** The full error details of a failed call. */
export function explain(failed: unknown): string {
  const error = ConnectError.from(failed);
  const lines = [`${Code[error.code]}: ${error.rawMessage}`];
  lines.push(...error.findDetails(ErrorInfoSchema).map((info) => `  reason: ${info.reason}`));
  for (const wrong of error.findDetails(BadRequestSchema)) {
    lines.push(...wrong.fieldViolations.map((one) => `  field: ${one.field}: ${one.description}`));
  }
  for (const retry of error.findDetails(RetryInfoSchema)) {
    lines.push(`  retry after: ${retry.retryDelay?.seconds ?? 0n} s`);
  }
  return lines.join("\n");
}
