"""What the README's numbers come from; each module is a command."""

from pipeline.runtime import environment

environment.prepare()
