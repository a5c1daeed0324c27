"""`python -m tests.simulation`: run seeds, one or many, and print what broke and how to see it again.

.venv/bin/python -m tests.simulation --seed 12345 --trace
.venv/bin/python -m tests.simulation --seeds 300 --workers 2
"""

from __future__ import annotations

import argparse
import gc
import os
import sys


def main() -> int:
    """The exit code: 0 when every invariant held."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of texts would iterate in another order in every process
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    arguments = parser.parse_args()

    from tests.simulation.run import SCOPES, run_seed  # noqa: PLC0415
    from tests.simulation.soak import Totals, run_many  # noqa: PLC0415 - after the re-exec

    if arguments.seed is not None:
        SCOPES.install()
        gc.freeze()
        result = run_seed(arguments.seed, trace=arguments.trace)
        print("\n".join(result.trace))
        totals = Totals()
        totals.add(result)
        print(totals.report())
        return 1 if result.findings else 0
    totals = run_many(
        first=arguments.first, count=arguments.seeds, workers=arguments.workers, keep_going=arguments.keep_going
    )
    print(totals.report())
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
