//! What every call needs: a key, a deadline, and retries.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

const MAX_ATTEMPTS: u32 = 4;
/// For all calls of one command.
pub const DEADLINE: Duration = Duration::from_secs(600);
/// A transcript of hours is larger than gRPC's 4 MiB.
pub const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// Adds the key and the deadline to every call.
#[derive(Clone)]
pub struct Headers(Option<MetadataValue<Ascii>>);

impl Headers {
    pub fn new(key: Option<String>) -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self(key.filter(|key| !key.is_empty()).map(|key| key.parse()).transpose()?))
    }
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("x-api-key", key.clone());
        }
        request.set_timeout(DEADLINE);
        Ok(request)
    }
}

/// Connects at the first call. Over a network, use `https://`, tonic's feature `tls-ring` and
/// `Endpoint::tls_config`: others can read plain text on the way.
pub fn connect(target: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{target}"))?
        .connect_timeout(Duration::from_secs(10))
        // Detects a dead connection; the server accepts a ping every 5 s.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    Ok(endpoint.connect_lazy())
}

/// Makes a call, and repeats it after the time in RetryInfo, within the deadline. The call must be
/// safe to repeat.
pub async fn with_retries<T, Call, Answer>(mut call: Call) -> Result<T, Status>
where
    Call: FnMut() -> Answer,
    Answer: Future<Output = Result<Response<T>, Status>>,
{
    let deadline = Instant::now() + DEADLINE;
    for attempt in 1.. {
        let failed = match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(failed) => failed,
        };
        match retry_delay(&failed) {
            Some(wait) if attempt < MAX_ATTEMPTS && Instant::now() + wait < deadline => {
                eprintln!("{}: trying again in {:.1} s", reason(&failed), wait.as_secs_f64());
                sleep(wait).await;
            }
            _ => return Err(failed),
        }
    }
    unreachable!("the last attempt returns")
}

/// The time in RetryInfo; None if waiting would not help.
fn retry_delay(failed: &Status) -> Option<Duration> {
    match failed.get_details_retry_info() {
        Some(retry) => retry.retry_delay,
        // UNAVAILABLE without RetryInfo: no server was reached.
        None => (failed.code() == Code::Unavailable).then_some(Duration::from_secs(1)),
    }
}

/// The stable reason for programs ("RATE_LIMITED"), or the status if there is none.
fn reason(failed: &Status) -> String {
    failed.get_details_error_info().map_or_else(|| format!("{:?}", failed.code()), |info| info.reason)
}

/// Prints the full error details of a failed call.
pub fn explain(failed: &Status) {
    eprintln!("{:?}: {}", failed.code(), failed.message());
    let details = failed.get_error_details();
    if let Some(info) = details.error_info() {
        eprintln!("  reason: {}", info.reason);
    }
    for violation in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
        eprintln!("  field: {}: {}", violation.field, violation.description);
    }
    for violation in details.quota_failure().iter().flat_map(|quota| &quota.violations) {
        eprintln!("  quota: {}", violation.description);
    }
    if let Some(wait) = details.retry_info().and_then(|retry| retry.retry_delay) {
        eprintln!("  retry after: {:.1} s", wait.as_secs_f64());
    }
}
