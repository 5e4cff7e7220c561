"""Who is who, whose object is it, and what resources may ask of the cluster."""
