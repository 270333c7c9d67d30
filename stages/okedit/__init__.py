"""OKEDIT: edits with their probes, one schema for every source (design §4)."""
