"""What clients may ask for: bodies and their fields, checked."""
