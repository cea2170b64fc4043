"""``diagtool completion``: a script that makes a shell complete commands, options and files."""

from __future__ import annotations

import click


@click.command("completion", short_help="Print a script for completion in your shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print a script that makes your shell complete diagtool's commands and options.

    \b
    Set it up:
        bash   eval "$(diagtool completion bash)"    in ~/.bashrc
        zsh    eval "$(diagtool completion zsh)"     in ~/.zshrc
        fish   diagtool completion fish | source     in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from diagtool.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.BadParameter(f"click has no completion for {shell}", param_hint="SHELL")
    click.echo(kind(cli, {}, "diagtool", "_DIAGTOOL_COMPLETE").source())
    return 0
