"""How good an embedding is: the scores of labelled cells put together, and shown.

`report` makes the report and its table, `page` the same with pictures.
"""
