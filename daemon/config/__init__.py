"""The configuration: its keys, where they come from, and what the parts take from them."""
