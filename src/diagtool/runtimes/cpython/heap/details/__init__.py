"""What is told of objects besides their number; all of it in order: ``details.py``."""
