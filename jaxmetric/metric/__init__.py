"""Metric learning itself, on arrays alone: no cells, no files.

`mining` finds the triplets and `losses` are what they cost, over the `distances`; `silhouette` and
`retrieval` score an embedding.
"""
