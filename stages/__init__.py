"""The stages of the study in the order of the graph; `stages.params` is the one module they all share."""
