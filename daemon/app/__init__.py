"""The daemon as a process: it is composed here, started, told to stop, and ended."""
