"""Which routes there are, where they come from, and which pipeline a request takes."""
