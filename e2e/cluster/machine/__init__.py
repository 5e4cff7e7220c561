"""The machine that a cluster runs on: its engine, its limits, its speed, what is left over."""
