"""A click group whose commands are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Commands are modules of one package; each has a ``command`` (a click command of the module's name)."""

    def __init__(self, *args: Any, commands_from: tuple[str, tuple[str, ...]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._package, self._names = commands_from

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of use rather than of the alphabet."""
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command ``cmd_name``, imported now."""
        if cmd_name not in self._names:
            return None
        command: click.Command = import_module(f"{self._package}.{cmd_name}").command
        return command
