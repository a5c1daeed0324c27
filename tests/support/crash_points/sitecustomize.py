"""Loaded by the interpreter of a daemon whose PYTHONPATH names this folder: arms the crash points of a plan, if there is one.

The product knows nothing of it. With CRASH_PLAN (a folder) in the environment the daemon's durable steps are counted, and
it dies by SIGKILL at the one that the plan names. The runners it starts are started through `launch.py`, which does the same.
"""

import os

if os.environ.get("CRASH_PLAN"):
    from tests.support.crash_points.daemon_points import arm

    arm(os.environ["CRASH_PLAN"])
