"""The cluster's parts from Debian packages and Go modules, for machines where the public images cannot be pulled."""
