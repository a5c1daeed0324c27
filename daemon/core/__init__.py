"""Types and decisions of the bus: pure functions, errors and the clock that is passed to everything else."""
