"""A fuzz worker that never begins a case."""

import time

if __name__ == "__main__":
    time.sleep(600)
