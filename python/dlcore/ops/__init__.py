"""One op per file: a torch reference that runs anywhere, and the device's faster version.

Every op chooses by the device of its tensors and its inputs' shapes alone, so that on a GPU it can
be captured into a graph: no host sync, no data-dependent shapes.
"""
