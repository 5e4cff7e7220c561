"""The pure core: layers, nodes, links and plans. No Kubernetes word, no clock, no I/O."""
