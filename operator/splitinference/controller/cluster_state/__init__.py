"""What the cluster shows: nodes, links, pods, probes."""
