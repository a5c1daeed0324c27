"""A fuzz worker that goes wrong by plan: case 0 passes, 1 kills the interpreter, 2 hangs, 3 breaks a promise, 4 passes."""

import json
import os
import sys
import time


def main() -> None:
    _, first, _, end = (int(text) for text in sys.argv[2:])
    for index in range(first, end):
        print(json.dumps({"begin": index}), flush=True)
        if index == 1:
            os.abort()
        if index == 2:
            time.sleep(600)
        failure = "a promise" if index == 3 else None
        said = {"end": index, "mutation": "m", "outcomes": {"collect": "ok"}, "seconds": 0.1, "failure": failure}
        print(json.dumps({**said, "resident": 1}), flush=True)


if __name__ == "__main__":
    main()
