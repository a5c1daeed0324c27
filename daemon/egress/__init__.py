"""The gate between agents and the network: keys stay on the host, and each request is allowed by name or refused."""
