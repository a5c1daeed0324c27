"""The contract between host and container: SQL, rows, opening a file, time.

Imports nothing of ours and nothing from outside the standard library, so that a runner of any kind can use it.
"""
