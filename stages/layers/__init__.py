"""The same edits at other depths of the model."""
