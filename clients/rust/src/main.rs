//! The five things that callers of typeless-grpc do most.

mod calls;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use calls::{Headers, MAX_RESPONSE_BYTES, connect, explain, with_retries};
use pb::jobs_service_client::JobsServiceClient;
use pb::stream_transcribe_request::Request as Step;
use pb::stream_transcribe_response::Event;
use pb::transcription_service_client::TranscriptionServiceClient;

/// The contract, as build.rs generated it.
mod pb {
    tonic::include_proto!("typeless.v1");
}

type Connection = InterceptedService<Channel, Headers>;
type Outcome = Result<(), Box<dyn Error>>;

const USAGE: &str = "usage: typeless-example COMMAND FILE...
  transcribe FILE   print the text
  stream FILE       send raw samples (16 kHz, 16 bits, mono) at the pace of speech
  batch FILE...     several recordings in one call
  job FILE          transcribe in the background, print subtitles
  error FILE        send an invalid request, show the error details
TYPELESS_SERVER (localhost:50051) and TYPELESS_API_KEY are read from the environment.";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [command, files @ ..] = words.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if files.is_empty() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    match run(command, files).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<Status>() {
                Some(failed) => explain(failed),
                None => eprintln!("{error}"),
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &str, files: &[String]) -> Outcome {
    let target = std::env::var("TYPELESS_SERVER").unwrap_or_else(|_| "localhost:50051".into());
    let headers = Headers::new(std::env::var("TYPELESS_API_KEY").ok())?;
    let connection = InterceptedService::new(connect(&target)?, headers);
    match command {
        "transcribe" => transcribe(connection, &files[0], None).await,
        "stream" => stream(connection, &files[0]).await,
        "batch" => batch(connection, files).await,
        "job" => job(connection, &files[0]).await,
        "error" => {
            let decoding = Some(pb::DecodingOptions { beam_size: 99, ..Default::default() });
            let impossible = pb::TranscriptionOptions { decoding, ..Default::default() };
            transcribe(connection, &files[0], Some(impossible)).await
        }
        _ => Err(format!("no command {command:?}\n{USAGE}").into()),
    }
}

fn transcription(connection: Connection) -> TranscriptionServiceClient<Connection> {
    TranscriptionServiceClient::new(connection).max_decoding_message_size(MAX_RESPONSE_BYTES)
}

async fn audio(file: &str) -> std::io::Result<Option<pb::AudioSource>> {
    let content = tokio::fs::read(file).await?;
    Ok(Some(pb::AudioSource { source: Some(pb::audio_source::Source::Content(content)), format: None }))
}

async fn transcribe(connection: Connection, file: &str, options: Option<pb::TranscriptionOptions>) -> Outcome {
    let request = pb::TranscribeRequest { audio: audio(file).await?, options };
    let client = transcription(connection);
    let response = with_retries(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.transcribe(request).await }
    })
    .await?;
    println!("{}", response.transcript.unwrap_or_default().text);
    Ok(())
}

async fn stream(connection: Connection, file: &str) -> Outcome {
    let samples = tokio::fs::File::open(file).await?;
    let format = pb::AudioFormat {
        encoding: pb::AudioEncoding::PcmS16le.into(),
        sample_rate_hertz: 16_000,
        ..Default::default()
    };
    let config = pb::StreamConfig { format: Some(format), interim_results: true, ..Default::default() };
    let (send, steps) = mpsc::channel(16);
    send.send(step(Step::Config(config))).await?;
    // Ends by itself with the file, or once the call does.
    tokio::spawn(send_at_the_pace_of_speech(samples, send));
    let mut events = transcription(connection).stream_transcribe(ReceiverStream::new(steps)).await?.into_inner();
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Interim(interim)) => println!("interim: {}{}", interim.stable_text, interim.unstable_text),
            Some(Event::Segment(segment)) => println!("final: {}", segment.text),
            Some(Event::Warning(warning)) => eprintln!("warning: {}", warning.message),
            _ => {}
        }
    }
    Ok(())
}

fn step(request: Step) -> pb::StreamTranscribeRequest {
    pb::StreamTranscribeRequest { request: Some(request) }
}

/// Sends a tenth of a second every tenth of a second. Where sending fails, the events tell why.
async fn send_at_the_pace_of_speech(mut samples: tokio::fs::File, send: mpsc::Sender<pb::StreamTranscribeRequest>) {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut payload = [0; 3200];
    while let Ok(n_bytes @ 1..) = samples.read(&mut payload).await {
        tick.tick().await;
        if send.send(step(Step::Audio(payload[..n_bytes].to_vec()))).await.is_err() {
            return;
        }
    }
}

async fn batch(connection: Connection, files: &[String]) -> Outcome {
    let mut request = pb::BatchTranscribeRequest::default();
    for file in files {
        let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy().into_owned();
        request.items.push(pb::BatchItem { name, audio: audio(file).await?, options: None });
    }
    let client = transcription(connection);
    let response = with_retries(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.batch_transcribe(request).await }
    })
    .await?;
    for pb::BatchResult { name, outcome, .. } in response.results {
        match outcome {
            Some(pb::batch_result::Outcome::Transcript(transcript)) => println!("{name}: {}", transcript.text),
            Some(pb::batch_result::Outcome::Failure(failure)) => println!("{name}: failed: {}", failure.reason),
            None => {}
        }
    }
    let summary = response.summary.unwrap_or_default();
    println!("{} of {} succeeded", summary.succeeded, summary.total);
    Ok(())
}

async fn job(connection: Connection, file: &str) -> Outcome {
    let request = pb::SubmitJobRequest {
        audio: audio(file).await?,
        options: Some(pb::TranscriptionOptions {
            output_formats: vec![pb::OutputFormat::Srt.into()],
            ..Default::default()
        }),
        // Sent again after a break, the job is still made once.
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let mut client = JobsServiceClient::new(connection).max_decoding_message_size(MAX_RESPONSE_BYTES);
    let submitted = with_retries(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.submit_job(request).await }
    })
    .await?;
    let mut last = submitted.job.unwrap_or_default();
    let watch = pb::WatchJobRequest { job_id: last.job_id.clone(), ..Default::default() };
    let mut changes = client.watch_job(watch).await?.into_inner();
    while let Some(response) = changes.message().await? {
        last = response.job.unwrap_or_default();
        let state = last.state().as_str_name().trim_start_matches("JOB_STATE_");
        eprintln!("{state} {:.0} %", last.progress * 100.0);
    }
    if let Some(failure) = last.failure {
        return Err(format!("{}: {}", failure.reason, failure.message).into());
    }
    for rendition in last.transcript.unwrap_or_default().renditions {
        print!("{}", rendition.content);
    }
    Ok(())
}
