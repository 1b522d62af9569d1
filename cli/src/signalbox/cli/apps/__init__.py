"""The sub-commands of each noun, as Typer applications. What they do is in commands/, imported when they run."""
