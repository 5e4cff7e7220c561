"""`splitinference plan`: solve a problem from files or a cluster."""
