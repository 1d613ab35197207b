"""The gRPC interface `dlcore.v1`: engine.proto and what protoc makes of it."""
