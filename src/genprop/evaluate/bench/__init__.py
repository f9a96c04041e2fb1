"""`genprop bench`: the same clip and seed through every backend, timed in turn and held against the floor."""
