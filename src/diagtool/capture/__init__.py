"""Bytes at one instant: from a live process or a core file."""
