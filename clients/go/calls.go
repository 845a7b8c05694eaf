package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const maxAttempts = 4

// connect opens a channel that sends the key with every call. Over a network, use
// credentials.NewTLS instead: others can read plain text on the way.
func connect(target, key string) (*grpc.ClientConn, error) {
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A transcript of hours is larger than gRPC's 4 MiB.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		// Detects a dead connection; the server accepts a ping every 5 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any,
			conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			return invoke(withKey(ctx, key), method, request, reply, conn, options...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, description *grpc.StreamDesc,
			conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(withKey(ctx, key), description, conn, method, options...)
		}))
}

func withKey(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", key)
}

// withRetries makes a call, and repeats it after the time in RetryInfo, within the deadline. The call
// must be safe to repeat.
func withRetries[Response any](ctx context.Context, call func(context.Context) (Response, error)) (Response, error) {
	for attempt := 1; ; attempt++ {
		response, err := call(ctx)
		if err == nil {
			return response, nil
		}
		wait, ok := retryDelay(err)
		deadline, _ := ctx.Deadline()
		if !ok || attempt == maxAttempts || time.Now().Add(wait).After(deadline) {
			return response, err
		}
		fmt.Fprintf(os.Stderr, "%s: trying again in %.1f s\n", reason(err), wait.Seconds())
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return response, err
		}
	}
}

// retryDelay is the time in RetryInfo; ok is false if waiting would not help.
func retryDelay(err error) (wait time.Duration, ok bool) {
	for _, detail := range status.Convert(err).Details() {
		if retry, is := detail.(*errdetails.RetryInfo); is {
			return retry.GetRetryDelay().AsDuration(), true
		}
	}
	// UNAVAILABLE without RetryInfo: no server was reached.
	return time.Second, status.Code(err) == codes.Unavailable
}

// reason is the stable reason for programs ("RATE_LIMITED"), or the status if there is none.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is {
			return info.GetReason()
		}
	}
	return status.Code(err).String()
}

// explain prints the full error details of a failed call.
func explain(err error) {
	failed, is := status.FromError(err)
	if !is {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", failed.Code(), failed.Message())
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Fprintln(os.Stderr, "  reason:", detail.GetReason())
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				fmt.Fprintf(os.Stderr, "  field: %s: %s\n", violation.GetField(), violation.GetDescription())
			}
		case *errdetails.QuotaFailure:
			for _, violation := range detail.GetViolations() {
				fmt.Fprintln(os.Stderr, "  quota:", violation.GetDescription())
			}
		case *errdetails.RetryInfo:
			fmt.Fprintf(os.Stderr, "  retry after: %.1f s\n", detail.GetRetryDelay().AsDuration().Seconds())
		}
	}
}
