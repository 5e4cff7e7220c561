"""One module per outside system; the only place where a socket or a file is opened."""
