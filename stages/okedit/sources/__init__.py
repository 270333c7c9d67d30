"""One module per source: `build(context) -> (edits, images)`."""
