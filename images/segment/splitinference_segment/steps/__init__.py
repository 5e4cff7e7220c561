"""How steps run in a segment: queues, batches, records."""
