"""Threads: interpreters, names, what each waits on."""
