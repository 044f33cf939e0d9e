"""Is every kernel right: against float64, and bitwise independent of batchmates."""
