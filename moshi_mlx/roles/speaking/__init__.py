"""Speaking a text frame by frame: what a row of a batch says next, the step of all rows, and who comes and goes."""
