"""Who gets a container, and every step of a container's life until its end is settled."""
