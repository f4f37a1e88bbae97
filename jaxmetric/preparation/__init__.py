"""From files of any size to one training store.

`prepare` is what users call: it scans every file, plans the store, and writes it. Nothing here needs jax.
"""
