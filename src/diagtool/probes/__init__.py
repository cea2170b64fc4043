"""What runs inside a process that asked for it: the pytest plugin, and what it is made of.

Everything else in diagtool looks at a process from outside. What is here is imported by the program that is
looked at, so it imports little, numpy never, and calls on the engine (``diagtool.api``) only in a process of
its own (``engine.py``).
"""
