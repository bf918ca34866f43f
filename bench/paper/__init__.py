"""A frame on paper: what is counted on its graph, and the bounds that follow."""
