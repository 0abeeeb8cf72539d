"""`virtq serve console`: consoles and ports."""
import click
@click.command()
def console() -> None: pass
