"""`make demo`: the whole bus in a temporary folder, one agent killed in mid-turn, and a count of what was lost."""
