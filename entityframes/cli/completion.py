"""The completion command: prints the script with which a shell completes commands, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from entityframes.cli.command import Command


@click.command(
    cls=Command,
    examples="""
# bash, in ~/.bashrc
eval "$(entityframes completion bash)"
# zsh, in ~/.zshrc after compinit
eval "$(entityframes completion zsh)"
# fish
entityframes completion fish > entityframes.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands in a shell."""
    root = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(root.command, {}, "entityframes", "_ENTITYFRAMES_COMPLETE").source()
    # Otherwise a description would end at its first comma.
    click.echo(script.replace('string split ","', 'string split --max 1 ","'))
