"""What the torch engine computes with: attention, packed weights, KV buffers, encodings, sampling."""
