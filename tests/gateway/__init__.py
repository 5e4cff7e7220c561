"""The gateway, against real HTTP and real gRPC."""
