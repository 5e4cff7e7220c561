"""For the benchmark and the tests alone: other people's methods, and an independent exact model. Nothing here plans for the operator."""
