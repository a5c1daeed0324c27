"""HTTP for servers and clients alike: requests, bounded connections, name resolution."""
