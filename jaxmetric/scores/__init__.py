"""What is measured of an embedding of labelled cells, one kind of score a file.

`label_transfer` is the one to read first: how right are the labels that the nearest cells give?
"""
