"""Edits that follow on each other: what each does to its own probes and to those of the others."""
