"""What a cluster is made of: images, packages, tools."""
