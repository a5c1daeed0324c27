"""What host and container must agree on: SQL, rows, how a file is opened, time.

Imports nothing of ours and nothing from outside the standard library, so that a runner of any kind can use it.
"""
