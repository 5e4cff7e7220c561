"""Files of a model: tensor tables, digests, folders."""
