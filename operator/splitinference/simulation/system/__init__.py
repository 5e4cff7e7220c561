"""The simulated cluster: nodes, links, segments and the gateway."""
