"""What labels mean: which cell types are kinds of which.

`ontology` is the Cell Ontology, `label_set` the relations of a run's labels as arrays. Nothing here
needs jax.
"""
