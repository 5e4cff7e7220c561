"""`splitinference filter train | eval`: a learned filter in front of a generic chain."""
