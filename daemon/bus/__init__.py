"""The main path: ingress (accept, row, wake), delivery (plan, intend, send, record), watch."""
