package typeless.example;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.QuotaFailure;
import com.google.rpc.RetryInfo;
import io.grpc.ClientInterceptor;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/** What every call needs: a key, a deadline, and retries. */
final class Calls {
  private static final int MAX_ATTEMPTS = 4;
  private static final Metadata.Key<String> KEY_HEADER =
      Metadata.Key.of("x-api-key", Metadata.ASCII_STRING_MARSHALLER);

  private Calls() {}

  /**
   * Opens a channel. Over a network, use TlsChannelCredentials: others can read plain text on the
   * way.
   */
  static ManagedChannel connect(String target, String key) {
    var builder =
        Grpc.newChannelBuilder(target, InsecureChannelCredentials.create())
            // A transcript of hours is larger than gRPC's 4 MiB.
            .maxInboundMessageSize(64 << 20)
            // Detects a dead connection; the server accepts a ping every 5 s.
            .keepAliveTime(30, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS);
    return key == null || key.isEmpty() ? builder.build() : builder.intercept(sendKey(key)).build();
  }

  private static ClientInterceptor sendKey(String key) {
    var headers = new Metadata();
    headers.put(KEY_HEADER, key);
    return MetadataUtils.newAttachHeadersInterceptor(headers);
  }

  /**
   * Makes a call, and repeats it after the time in RetryInfo, within the deadline. The call must be
   * safe to repeat.
   */
  static <T> T withRetries(Deadline deadline, Supplier<T> call) throws InterruptedException {
    for (int attempt = 1; ; attempt++) {
      try {
        return call.get();
      } catch (StatusRuntimeException failed) {
        var waitMs = retryDelayMs(failed);
        if (waitMs.isEmpty()
            || attempt == MAX_ATTEMPTS
            || waitMs.get() > deadline.timeRemaining(TimeUnit.MILLISECONDS)) {
          throw failed;
        }
        System.err.printf("%s: trying again in %.1f s%n", reason(failed), waitMs.get() / 1000.0);
        Thread.sleep(waitMs.get());
      }
    }
  }

  /** The time in RetryInfo; empty if waiting would not help. */
  private static Optional<Long> retryDelayMs(StatusRuntimeException failed) {
    var requested = detail(failed, RetryInfo.class).map(RetryInfo::getRetryDelay).map(Calls::milliseconds);
    // UNAVAILABLE without RetryInfo: no server was reached.
    boolean isUnreachable = failed.getStatus().getCode() == Status.Code.UNAVAILABLE;
    return requested.isPresent() || !isUnreachable ? requested : Optional.of(1000L);
  }

  private static long milliseconds(Duration duration) {
    return duration.getSeconds() * 1000 + (duration.getNanos() + 999_999) / 1_000_000;
  }

  /** The stable reason for programs ("RATE_LIMITED"), or the status if there is none. */
  private static String reason(StatusRuntimeException failed) {
    return detail(failed, ErrorInfo.class)
        .map(ErrorInfo::getReason)
        .orElseGet(() -> failed.getStatus().getCode().name());
  }

  /** Prints the full error details of a failed call. */
  static void explain(StatusRuntimeException failed) {
    var status = failed.getStatus();
    System.err.printf("%s: %s%n", status.getCode(), status.getDescription());
    detail(failed, ErrorInfo.class).ifPresent(info -> System.err.println("  reason: " + info.getReason()));
    detail(failed, BadRequest.class).map(BadRequest::getFieldViolationsList).orElse(List.of()).forEach(
        wrong -> System.err.printf("  field: %s: %s%n", wrong.getField(), wrong.getDescription()));
    detail(failed, QuotaFailure.class).map(QuotaFailure::getViolationsList).orElse(List.of()).forEach(
        spent -> System.err.println("  quota: " + spent.getDescription()));
    detail(failed, RetryInfo.class).map(RetryInfo::getRetryDelay).ifPresent(
        wait -> System.err.printf("  retry after: %.1f s%n", milliseconds(wait) / 1000.0));
  }

  private static <T extends Message> Optional<T> detail(StatusRuntimeException failed, Class<T> kind) {
    try {
      var status = StatusProto.fromThrowable(failed);
      for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
        if (detail.is(kind)) {
          return Optional.of(detail.unpack(kind));
        }
      }
      return Optional.empty();
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalStateException("the server's details cannot be read", error);
    }
  }
}
