"""Examples: a policy and its heads built from nothing, and the gold task. Not in the wheel."""
