"""A discrete-event simulation of nodes, links and requests that drives the operator's own core: triggers, decide, solve, transition."""
