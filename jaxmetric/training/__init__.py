"""From cells to a trained model.

Users call `fit`. `loop` goes through the epochs and `step` is one step, a pure function of one batch;
`run` is the run's directory, and `trained_model` makes the model at the end.
"""
