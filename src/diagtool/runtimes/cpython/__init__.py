"""CPython 3.9 to 3.15: interpreters, threads, frames, tasks, objects."""
