"""Who a segment speaks with: identities, the wire in both directions, the next hop, and what its link shows."""
