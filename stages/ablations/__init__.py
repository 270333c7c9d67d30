"""Ablations over the radius: arithmetic on traces, no edit is made again."""
