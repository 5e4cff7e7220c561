"""Label-setting search for one chain: prices chains and gives bounds."""
