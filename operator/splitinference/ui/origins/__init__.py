"""Where the page's document comes from: a cluster, a file or a simulation."""
