"""Loaded by the interpreter of a daemon whose PYTHONPATH names this folder: arms the crash points of a plan, if there is one.

The product knows nothing of it. With CRASH_PLAN (a folder) in the environment the daemon's durable steps are counted, and
it dies by SIGKILL at the one that the plan names. The runners it starts are started through `launch.py`, which does the same.
"""

import os
import sys
import traceback

if os.environ.get("CRASH_PLAN"):
    try:
        from tests.support.crash_points.daemon_points import arm

        arm(os.environ["CRASH_PLAN"])
    except BaseException:  # noqa: BLE001 - whatever it is, it must end this process
        # The interpreter prints an error of this file and goes on: half of the points would be missing unseen.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
