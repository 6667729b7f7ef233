"""The measurements behind docs/benchmarks.md; each module is a command."""

from pipeline.runtime import environment

environment.prepare()
