"""`splitinference secret`: a small generic chain, computed by two parties of which neither can read inputs, outputs or weights."""
