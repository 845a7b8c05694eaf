package typeless.example;

import com.google.protobuf.ByteString;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import typeless.v1.Audio.AudioEncoding;
import typeless.v1.Audio.AudioFormat;
import typeless.v1.Audio.AudioSource;
import typeless.v1.Jobs.Job;
import typeless.v1.Jobs.SubmitJobRequest;
import typeless.v1.Jobs.WatchJobRequest;
import typeless.v1.JobsServiceGrpc;
import typeless.v1.TranscriptOuterClass.OutputFormat;
import typeless.v1.Transcription.BatchItem;
import typeless.v1.Transcription.BatchTranscribeRequest;
import typeless.v1.Transcription.DecodingOptions;
import typeless.v1.Transcription.StreamConfig;
import typeless.v1.Transcription.StreamTranscribeRequest;
import typeless.v1.Transcription.StreamTranscribeResponse;
import typeless.v1.Transcription.TranscribeRequest;
import typeless.v1.Transcription.TranscriptionOptions;
import typeless.v1.TranscriptionServiceGrpc;

/** The five things that callers of typeless-grpc do most. */
public final class Main {
  private static final String USAGE =
      """
      usage: java -cp 'target/classes:target/lib/*' typeless.example.Main COMMAND FILE...
        transcribe FILE   print the text
        stream FILE       send raw samples (16 kHz, 16 bits, mono) at the pace of speech
        batch FILE...     several recordings in one call
        job FILE          transcribe in the background, print subtitles
        error FILE        send an invalid request, show the error details
      TYPELESS_SERVER (localhost:50051) and TYPELESS_API_KEY are read from the environment.""";

  private final ManagedChannel channel;
  // Of every call: the server stops work that nobody waits for any more.
  private final Deadline deadline = Deadline.after(10, TimeUnit.MINUTES);

  private Main(ManagedChannel channel) {
    this.channel = channel;
  }

  public static void main(String[] words) throws Exception {
    if (words.length < 2) {
      System.err.println(USAGE);
      System.exit(2);
    }
    var target = System.getenv().getOrDefault("TYPELESS_SERVER", "localhost:50051");
    var channel = Calls.connect(target, System.getenv("TYPELESS_API_KEY"));
    int code = 0;
    try {
      new Main(channel).run(words[0], Arrays.asList(words).subList(1, words.length));
    } catch (StatusRuntimeException failed) {
      Calls.explain(failed);
      code = 1;
    } catch (IOException | IllegalStateException error) {
      System.err.println(error.getMessage());
      code = 1;
    } finally {
      channel.shutdownNow();
    }
    System.exit(code);
  }

  private void run(String command, List<String> files) throws Exception {
    switch (command) {
      case "transcribe" -> transcribe(files.get(0), TranscriptionOptions.getDefaultInstance());
      case "stream" -> stream(files.get(0));
      case "batch" -> batch(files);
      case "job" -> job(files.get(0));
      case "error" -> {
        var decoding = DecodingOptions.newBuilder().setBeamSize(99);
        transcribe(files.get(0), TranscriptionOptions.newBuilder().setDecoding(decoding).build());
      }
      default -> throw new IllegalStateException("no command " + command + "\n" + USAGE);
    }
  }

  private static AudioSource audio(String file) throws IOException {
    return AudioSource.newBuilder().setContent(ByteString.copyFrom(Files.readAllBytes(Path.of(file)))).build();
  }

  private TranscriptionServiceGrpc.TranscriptionServiceBlockingStub transcription() {
    return TranscriptionServiceGrpc.newBlockingStub(channel).withDeadline(deadline);
  }

  private void transcribe(String file, TranscriptionOptions options) throws Exception {
    var request = TranscribeRequest.newBuilder().setAudio(audio(file)).setOptions(options).build();
    var response = Calls.withRetries(deadline, () -> transcription().transcribe(request));
    System.out.println(response.getTranscript().getText());
  }

  private void stream(String file) throws Exception {
    var ended = new CompletableFuture<Void>();
    var call = TranscriptionServiceGrpc.newStub(channel).withDeadline(deadline).streamTranscribe(printing(ended));
    var format =
        AudioFormat.newBuilder()
            .setEncoding(AudioEncoding.AUDIO_ENCODING_PCM_S16LE)
            .setSampleRateHertz(16_000);
    var config = StreamConfig.newBuilder().setFormat(format).setInterimResults(true);
    call.onNext(StreamTranscribeRequest.newBuilder().setConfig(config).build());
    sendAtThePaceOfSpeech(file, call, ended);
    try {
      ended.get();
    } catch (ExecutionException error) {
      throw error.getCause() instanceof StatusRuntimeException failed ? failed : error;
    }
  }

  private static StreamObserver<StreamTranscribeResponse> printing(CompletableFuture<Void> ended) {
    return new StreamObserver<>() {
      @Override
      public void onNext(StreamTranscribeResponse response) {
        switch (response.getEventCase()) {
          case INTERIM -> System.out.println(
              "interim: " + response.getInterim().getStableText() + response.getInterim().getUnstableText());
          case SEGMENT -> System.out.println("final: " + response.getSegment().getText());
          case WARNING -> System.err.println("warning: " + response.getWarning().getMessage());
          default -> {}
        }
      }

      @Override
      public void onError(Throwable error) {
        ended.completeExceptionally(error);
      }

      @Override
      public void onCompleted() {
        ended.complete(null);
      }
    };
  }

  /** Sends a tenth of a second every tenth of a second. Where the call ends first, its observer tells why. */
  private static void sendAtThePaceOfSpeech(
      String file, StreamObserver<StreamTranscribeRequest> call, CompletableFuture<Void> ended)
      throws IOException, InterruptedException {
    try (var samples = Files.newInputStream(Path.of(file))) {
      for (byte[] payload; (payload = samples.readNBytes(3200)).length > 0; Thread.sleep(100)) {
        if (ended.isDone()) {
          return;
        }
        call.onNext(StreamTranscribeRequest.newBuilder().setAudio(ByteString.copyFrom(payload)).build());
      }
      call.onCompleted();
    }
  }

  private void batch(List<String> files) throws Exception {
    var request = BatchTranscribeRequest.newBuilder();
    for (var file : files) {
      var name = Path.of(file).getFileName().toString();
      request.addItems(BatchItem.newBuilder().setName(name).setAudio(audio(file)));
    }
    var response = Calls.withRetries(deadline, () -> transcription().batchTranscribe(request.build()));
    for (var result : response.getResultsList()) {
      var outcome =
          result.hasFailure() ? "failed: " + result.getFailure().getReason() : result.getTranscript().getText();
      System.out.println(result.getName() + ": " + outcome);
    }
    var summary = response.getSummary();
    System.out.printf("%d of %d succeeded%n", summary.getSucceeded(), summary.getTotal());
  }

  private void job(String file) throws Exception {
    var request =
        SubmitJobRequest.newBuilder()
            .setAudio(audio(file))
            .setOptions(TranscriptionOptions.newBuilder().addOutputFormats(OutputFormat.OUTPUT_FORMAT_SRT))
            // Sent again after a break, the job is still made once.
            .setRequestId(UUID.randomUUID().toString())
            .build();
    var jobs = JobsServiceGrpc.newBlockingStub(channel).withDeadline(deadline);
    Job last = Calls.withRetries(deadline, () -> jobs.submitJob(request)).getJob();
    var changes = jobs.watchJob(WatchJobRequest.newBuilder().setJobId(last.getJobId()).build());
    while (changes.hasNext()) {
      last = changes.next().getJob();
      var state = last.getState().name().replace("JOB_STATE_", "");
      System.err.printf("%s %.0f %%%n", state, last.getProgress() * 100);
    }
    if (last.hasFailure()) {
      throw new IllegalStateException(last.getFailure().getReason() + ": " + last.getFailure().getMessage());
    }
    last.getTranscript().getRenditionsList().forEach(rendition -> System.out.print(rendition.getContent()));
  }
}
