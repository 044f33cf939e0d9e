"""Rules benchmark: what controllers cost beside constant strength, and rules beside other programs."""
