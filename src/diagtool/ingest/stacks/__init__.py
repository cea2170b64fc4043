"""Stacks of Python and native threads and of asyncio tasks, as other tools print them.

``model`` makes snapshots of what the readers found, ``waits`` names waits by frames in the words of our own
decoders, so that the same leak has the same finding whoever wrote the stacks down. A reader a tool:
``tracebacks`` (faulthandler, sys._current_frames, pystack), ``pyspy``, ``gdb``, ``tasks`` (``asyncio ps``).
"""
