"""`make hostile`: the gateway, as a process, under requests that mean harm. What it costs, and whether others still get their answers."""
