"""Read models over a data folder: the same code with the daemon up and down. Nothing here changes anything."""
