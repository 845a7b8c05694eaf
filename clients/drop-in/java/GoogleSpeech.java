import com.google.api.gax.core.NoCredentialsProvider;
import com.google.api.gax.grpc.InstantiatingGrpcChannelProvider;
import com.google.api.gax.rpc.FixedHeaderProvider;
import com.google.cloud.speech.v1.RecognitionAudio;
import com.google.cloud.speech.v1.RecognitionConfig;
import com.google.cloud.speech.v1.SpeechClient;
import com.google.cloud.speech.v1.SpeechRecognitionResult;
import com.google.cloud.speech.v1.SpeechSettings;
import com.google.protobuf.ByteString;
import io.grpc.ManagedChannelBuilder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;

/**
 * Google's own client for Java, unchanged, against this server:
 *
 * <pre>
 * mvn -q dependency:build-classpath -Dmdep.outputFile=target/classpath
 * java -cp "$(cat target/classpath)" GoogleSpeech.java file|job RECORDING
 * </pre>
 *
 * <p>TYPELESS_SERVER is HOST:PORT (default localhost:50051), TYPELESS_API_KEY a key, if the server has keys. With TLS, set
 * only the endpoint and {@code setApiKey}. With GOOGLE_CLOUD_UNIVERSE_DOMAIN the client has no settings, and {@code
 * typeless keys google-account} makes its credentials; a trust store must have the authority.
 */
public final class GoogleSpeech {
  public static void main(String[] arguments) throws Exception {
    RecognitionConfig config = RecognitionConfig.newBuilder().setLanguageCode("en-US").build();
    ByteString content = ByteString.copyFrom(Files.readAllBytes(Path.of(arguments[1])));
    RecognitionAudio audio = RecognitionAudio.newBuilder().setContent(content).build();
    try (SpeechClient client = client()) {
      List<SpeechRecognitionResult> results =
          arguments[0].equals("job")
              ? client.longRunningRecognizeAsync(config, audio).get().getResultsList()
              : client.recognize(config, audio).getResultsList();
      StringBuilder text = new StringBuilder();
      results.forEach(result -> text.append(result.getAlternatives(0).getTranscript()));
      System.out.println(text);
    }
  }

  private static SpeechClient client() throws Exception {
    if (System.getenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN") != null) {
      return SpeechClient.create();
    }
    String key = System.getenv().getOrDefault("TYPELESS_API_KEY", "");
    InstantiatingGrpcChannelProvider channel =
        InstantiatingGrpcChannelProvider.newBuilder()
            .setEndpoint(System.getenv().getOrDefault("TYPELESS_SERVER", "localhost:50051"))
            .setChannelConfigurator(ManagedChannelBuilder::usePlaintext)
            .build();
    return SpeechClient.create(
        SpeechSettings.newBuilder()
            .setTransportChannelProvider(channel)
            .setCredentialsProvider(NoCredentialsProvider.create())
            .setHeaderProvider(FixedHeaderProvider.create(key.isEmpty() ? Map.of() : Map.of("x-goog-api-key", key)))
            .build());
  }
}
