"""The performance suite: every figure beside the floor of the same machine in the same run. Ships with nothing."""
