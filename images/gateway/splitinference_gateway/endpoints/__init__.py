"""What clients and the operator reach: OpenAI's API, KServe v2 over HTTP and gRPC, and the internal port."""
