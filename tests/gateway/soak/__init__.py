"""A long run of gateway and real segments under load, with random cancels, cutovers and kills, that then looks for what leaked."""
