"""What is measured of nodes, and whose word is taken."""
