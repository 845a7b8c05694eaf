// Google's own client for Go, unchanged, against this server: `go run . RECORDING`.
//
// TYPELESS_SERVER is HOST:PORT (default localhost:50051), TYPELESS_API_KEY a key, if the server has keys. With TLS, leave
// the last two options out, and give the key as option.WithAPIKey. With GOOGLE_CLOUD_UNIVERSE_DOMAIN the client has no
// options, and `typeless keys google-account` makes its credentials.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	speech "cloud.google.com/go/speech/apiv1"
	"cloud.google.com/go/speech/apiv1/speechpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func main() {
	server := os.Getenv("TYPELESS_SERVER")
	if server == "" {
		server = "localhost:50051"
	}
	ctx := context.Background()
	if key := os.Getenv("TYPELESS_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-goog-api-key", key)
	}
	options := []option.ClientOption{
		option.WithEndpoint(server),
		option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
	if os.Getenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN") != "" {
		options = nil
	}
	client, err := speech.NewClient(ctx, options...)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	content, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	operation, err := client.LongRunningRecognize(ctx, &speechpb.LongRunningRecognizeRequest{
		Config: &speechpb.RecognitionConfig{LanguageCode: "en-US"},
		Audio:  &speechpb.RecognitionAudio{AudioSource: &speechpb.RecognitionAudio_Content{Content: content}},
	})
	if err != nil {
		log.Fatal(err)
	}
	response, err := operation.Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, result := range response.Results {
		fmt.Print(result.Alternatives[0].Transcript)
	}
	fmt.Println()
}
