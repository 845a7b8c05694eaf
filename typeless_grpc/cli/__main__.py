"""`python -m typeless_grpc.cli` is `typeless`."""

from typeless_grpc.cli.main import main

main()
