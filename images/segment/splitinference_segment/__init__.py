"""What runs in a segment's pod: layers [start, end) of a model behind Triton's Python backend. It never imports the operator."""
