"""One pass: gather, decide, act, report."""
