"""Frames and code objects: functions, lines, evaluation stacks."""
