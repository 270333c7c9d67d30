"""What the outcomes of edits are worth: which of a trace's two outcomes counts, and the scores of both protocols."""
