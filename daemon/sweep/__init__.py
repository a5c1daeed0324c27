"""What repairs the rest: observe, decide (pure), act; recurrence."""
