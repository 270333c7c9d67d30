"""Scores of every method in both protocols, by arithmetic on the traces."""
