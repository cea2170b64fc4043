"""``diagtool run``: a command is started unchanged, looked at when something happens, and judged in the end.

| step | module |
|---|---|
| what is to be waited for: ``exit``, ``rss>2GiB``, ``every=30s`` | ``triggers.py`` |
| the command as our child: same group, terminal, signals, status | ``child.py`` |
| the processes that came of it, and their figures | ``tree.py`` |
| the loop: signals passed on, stops answered, triggers watched | ``loop.py`` |
| snapshots, taken and decoded beside it | ``analyst.py`` |
| all of them judged: one report | ``verdict.py`` |
"""
