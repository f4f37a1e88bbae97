"""How good an embedding is: the scores of labelled cells, as a report and as pictures.

`evaluate` goes from cells to the report; `report` has the scores and their table, `page` the pictures.
"""
