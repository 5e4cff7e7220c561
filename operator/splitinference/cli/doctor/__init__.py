"""`kubectl split doctor`: what is missing, and the command that fixes it."""

from splitinference.cli.doctor.command import command

__all__ = ["command"]
