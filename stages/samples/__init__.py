"""Positive and negative samples: the queries that place an edit's radius."""
