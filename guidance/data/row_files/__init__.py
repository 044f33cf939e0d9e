"""Files of rows: what a path means, and how each kind of file is read."""
