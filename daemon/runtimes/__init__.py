"""Container runtimes: the protocol, Docker, plain processes, and the image that Docker starts."""
