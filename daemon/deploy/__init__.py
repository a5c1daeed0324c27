"""Releases and how one takes the place of another: making and keeping them, slots, the gates of a deploy."""
