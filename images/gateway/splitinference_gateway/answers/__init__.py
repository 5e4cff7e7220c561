"""From a checked request to its answer: admission, the chain, and the form that the client asked for."""
