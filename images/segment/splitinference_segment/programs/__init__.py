"""Commands of the image besides the server: measure, convert, compare."""
