// Command typeless-client shows the five things that callers of typeless-grpc do most.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"

	pb "example.com/typeless-client/gen/typeless/v1"
)

const usage = `usage: typeless-client COMMAND FILE...
  transcribe FILE   print the text
  stream FILE       send raw samples (16 kHz, 16 bits, mono) at the pace of speech
  batch FILE...     several recordings in one call
  job FILE          transcribe in the background, print subtitles
  error FILE        send an invalid request, show the error details
TYPELESS_SERVER (localhost:50051) and TYPELESS_API_KEY are read from the environment.`

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		explain(err)
		os.Exit(1)
	}
}

func run(command string, files []string) error {
	target := os.Getenv("TYPELESS_SERVER")
	if target == "" {
		target = "localhost:50051"
	}
	conn, err := connect(target, os.Getenv("TYPELESS_API_KEY"))
	if err != nil {
		return err
	}
	defer conn.Close()
	// Every call has a deadline: the server stops work that nobody waits for any more.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	switch command {
	case "transcribe":
		return transcribe(ctx, conn, files[0], nil)
	case "stream":
		return stream(ctx, conn, files[0])
	case "batch":
		return batch(ctx, conn, files)
	case "job":
		return job(ctx, conn, files[0])
	case "error":
		impossible := &pb.TranscriptionOptions{Decoding: &pb.DecodingOptions{BeamSize: 99}}
		return transcribe(ctx, conn, files[0], impossible)
	default:
		return fmt.Errorf("no command %q\n%s", command, usage)
	}
}

func audio(file string) (*pb.AudioSource, error) {
	content, err := os.ReadFile(file)
	return &pb.AudioSource{Source: &pb.AudioSource_Content{Content: content}}, err
}

func transcribe(ctx context.Context, conn *grpc.ClientConn, file string, options *pb.TranscriptionOptions) error {
	source, err := audio(file)
	if err != nil {
		return err
	}
	client := pb.NewTranscriptionServiceClient(conn)
	response, err := withRetries(ctx, func(ctx context.Context) (*pb.TranscribeResponse, error) {
		return client.Transcribe(ctx, &pb.TranscribeRequest{Audio: source, Options: options})
	})
	if err != nil {
		return err
	}
	fmt.Println(response.GetTranscript().GetText())
	return nil
}

func stream(ctx context.Context, conn *grpc.ClientConn, file string) error {
	samples, err := os.Open(file)
	if err != nil {
		return err
	}
	defer samples.Close()
	ctx, cancel := context.WithCancel(ctx) // ends the sender too where the call fails
	defer cancel()
	call, err := pb.NewTranscriptionServiceClient(conn).StreamTranscribe(ctx)
	if err != nil {
		return err
	}
	config := &pb.StreamConfig{
		Format:         &pb.AudioFormat{Encoding: pb.AudioEncoding_AUDIO_ENCODING_PCM_S16LE, SampleRateHertz: 16000},
		InterimResults: true,
	}
	if err := call.Send(&pb.StreamTranscribeRequest{Request: &pb.StreamTranscribeRequest_Config{Config: config}}); err != nil {
		return err
	}
	go sendAtThePaceOfSpeech(ctx, call, samples)
	for {
		response, err := call.Recv()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		switch event := response.GetEvent().(type) {
		case *pb.StreamTranscribeResponse_Interim:
			fmt.Println("interim:", event.Interim.GetStableText()+event.Interim.GetUnstableText())
		case *pb.StreamTranscribeResponse_Segment:
			fmt.Println("final:", event.Segment.GetText())
		case *pb.StreamTranscribeResponse_Warning:
			fmt.Fprintln(os.Stderr, "warning:", event.Warning.GetMessage())
		}
	}
}

// sendAtThePaceOfSpeech sends a tenth of a second every tenth of a second. Where sending fails,
// Recv tells why.
func sendAtThePaceOfSpeech(ctx context.Context, call pb.TranscriptionService_StreamTranscribeClient, samples io.Reader) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for payload := make([]byte, 3200); ; {
		n, err := io.ReadFull(samples, payload)
		if n > 0 {
			request := &pb.StreamTranscribeRequest{Request: &pb.StreamTranscribeRequest_Audio{Audio: payload[:n]}}
			if call.Send(request) != nil {
				return
			}
		}
		if err != nil {
			call.CloseSend()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func batch(ctx context.Context, conn *grpc.ClientConn, files []string) error {
	request := &pb.BatchTranscribeRequest{}
	for _, file := range files {
		source, err := audio(file)
		if err != nil {
			return err
		}
		request.Items = append(request.Items, &pb.BatchItem{Name: filepath.Base(file), Audio: source})
	}
	client := pb.NewTranscriptionServiceClient(conn)
	response, err := withRetries(ctx, func(ctx context.Context) (*pb.BatchTranscribeResponse, error) {
		return client.BatchTranscribe(ctx, request)
	})
	if err != nil {
		return err
	}
	for _, result := range response.GetResults() {
		if failure := result.GetFailure(); failure != nil {
			fmt.Printf("%s: failed: %s\n", result.GetName(), failure.GetReason())
		} else {
			fmt.Printf("%s: %s\n", result.GetName(), result.GetTranscript().GetText())
		}
	}
	fmt.Printf("%d of %d succeeded\n", response.GetSummary().GetSucceeded(), response.GetSummary().GetTotal())
	return nil
}

func job(ctx context.Context, conn *grpc.ClientConn, file string) error {
	source, err := audio(file)
	if err != nil {
		return err
	}
	client := pb.NewJobsServiceClient(conn)
	request := submission(source)
	submitted, err := withRetries(ctx, func(ctx context.Context) (*pb.SubmitJobResponse, error) {
		return client.SubmitJob(ctx, request)
	})
	if err != nil {
		return err
	}
	watch, err := client.WatchJob(ctx, &pb.WatchJobRequest{JobId: submitted.GetJob().GetJobId()})
	if err != nil {
		return err
	}
	last := submitted.GetJob()
	for {
		response, err := watch.Recv()
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		last = response.GetJob()
		state := strings.TrimPrefix(last.GetState().String(), "JOB_STATE_")
		fmt.Fprintf(os.Stderr, "%s %.0f %%\n", state, last.GetProgress()*100)
	}
	if failure := last.GetFailure(); failure != nil {
		return errors.New(failure.GetReason() + ": " + failure.GetMessage())
	}
	for _, rendition := range last.GetTranscript().GetRenditions() {
		fmt.Print(rendition.GetContent())
	}
	return nil
}

func submission(source *pb.AudioSource) *pb.SubmitJobRequest {
	return &pb.SubmitJobRequest{
		Audio:   source,
		Options: &pb.TranscriptionOptions{OutputFormats: []pb.OutputFormat{pb.OutputFormat_OUTPUT_FORMAT_SRT}},
		// Sent again after a break, the job is still made once.
		RequestId: rand.Text(),
	}
}
