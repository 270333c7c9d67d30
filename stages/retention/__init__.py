"""Many edits of one model, one after the other, and what is left of each."""
