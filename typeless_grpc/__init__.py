"""Speech to text over gRPC. Importing this imports nothing: see `typeless_grpc.client` for the caller's side."""
