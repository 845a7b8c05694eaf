// What every call needs: a key, a deadline, and retries.

import { credentials, InterceptingCall, Interceptor, Metadata, ServiceError, status } from "@grpc/grpc-js";
import { setTimeout as sleep } from "node:timers/promises";

import { BadRequest, ErrorInfo, QuotaFailure, RetryInfo } from "../gen/google/rpc/error_details";
import { Status } from "../gen/google/rpc/status";

const MAX_ATTEMPTS = 4;

export const target = process.env.TYPELESS_SERVER || "localhost:50051";

// Over a network, use credentials.createSsl(): others can read plain text on the way.
export const channelCredentials = credentials.createInsecure();

const sendKey: Interceptor = (options, next) =>
  new InterceptingCall(next(options), {
    start(metadata, listener, start) {
      const key = process.env.TYPELESS_API_KEY;
      if (key) metadata.set("x-api-key", key);
      start(metadata, listener);
    },
  });

export const channelOptions = {
  interceptors: [sendKey],
  // A transcript of hours is larger than gRPC's 4 MiB.
  "grpc.max_receive_message_length": 64 * 1024 * 1024,
  // Detects a dead connection; the server accepts a ping every 5 s.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
};

/** The deadline for all calls of one command. */
export function tenMinutes(): { deadline: number } {
  return { deadline: Date.now() + 10 * 60_000 };
}

type Unary<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: { deadline: number },
  done: (error: ServiceError | null, response: Response) => void,
) => unknown;

/**
 * Make a call, and repeat it after the time in RetryInfo, within the deadline. The call must be safe
 * to repeat.
 */
export async function withRetries<Request, Response>(
  call: Unary<Request, Response>,
  request: Request,
  options = tenMinutes(),
): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await new Promise<Response>((resolve, reject) =>
        call(request, new Metadata(), options, (error, response) => (error ? reject(error) : resolve(response))),
      );
    } catch (error) {
      const waitMs = retryDelayMs(error as ServiceError);
      if (waitMs === undefined || attempt === MAX_ATTEMPTS || Date.now() + waitMs > options.deadline) throw error;
      console.error(`${reason(error as ServiceError)}: trying again in ${(waitMs / 1000).toFixed(1)} s`);
      await sleep(waitMs);
    }
  }
}

interface Details {
  info?: ErrorInfo;
  bad?: BadRequest;
  quota?: QuotaFailure;
  retry?: RetryInfo;
}

/** The google.rpc details of a call that failed. */
function details(error: ServiceError): Details {
  const found: Details = {};
  for (const bytes of error.metadata?.get("grpc-status-details-bin") ?? []) {
    for (const { typeUrl, value } of Status.decode(bytes as Buffer).details) {
      const name = typeUrl.split("/").pop();
      if (name === "google.rpc.ErrorInfo") found.info = ErrorInfo.decode(value);
      if (name === "google.rpc.BadRequest") found.bad = BadRequest.decode(value);
      if (name === "google.rpc.QuotaFailure") found.quota = QuotaFailure.decode(value);
      if (name === "google.rpc.RetryInfo") found.retry = RetryInfo.decode(value);
    }
  }
  return found;
}

/** The time in RetryInfo; undefined if waiting would not help. */
function retryDelayMs(error: ServiceError): number | undefined {
  const delay = details(error).retry?.retryDelay;
  if (delay) return delay.seconds * 1000 + delay.nanos / 1e6;
  // UNAVAILABLE without RetryInfo: no server was reached.
  return error.code === status.UNAVAILABLE ? 1000 : undefined;
}

/** The stable reason for programs ("RATE_LIMITED"), or the status if there is none. */
function reason(error: ServiceError): string {
  return details(error).info?.reason ?? status[error.code];
}

/** Print the full error details of a failed call. */
export function explain(error: ServiceError): void {
  if (error.code === undefined || !(error.code in status)) {
    console.error(error.message);
    return;
  }
  const { info, bad, quota, retry } = details(error);
  console.error(`${status[error.code]}: ${error.details}`);
  if (info) console.error(`  reason: ${info.reason}`);
  for (const violation of bad?.fieldViolations ?? []) {
    console.error(`  field: ${violation.field}: ${violation.description}`);
  }
  for (const violation of quota?.violations ?? []) console.error(`  quota: ${violation.description}`);
  if (retry?.retryDelay) console.error(`  retry after: ${(retryDelayMs(error)! / 1000).toFixed(1)} s`);
}
