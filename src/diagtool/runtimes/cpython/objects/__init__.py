"""Python objects in memory: one at a time and in thousands, sets of addresses, counts by type."""
