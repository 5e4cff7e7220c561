"""What passes keep besides segments: objects of a resource, and the figures of nodes."""
