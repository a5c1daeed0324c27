"""Where agents run: the runtime protocol, Docker, plain processes, and the image that Docker starts."""
