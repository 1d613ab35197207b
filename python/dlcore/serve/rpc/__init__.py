"""The gRPC front end: package dlcore.v1, health and reflection."""
