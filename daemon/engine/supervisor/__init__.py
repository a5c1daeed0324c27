"""Decides who gets a container, and carries out each step of a container's life until its end is settled."""
