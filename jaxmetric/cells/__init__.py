"""Cells as they are read: from h5ad, zarr, AnnData or a training store.

`cells` has the class `Cells`, `read` makes it of files. Nothing here needs jax.
"""
