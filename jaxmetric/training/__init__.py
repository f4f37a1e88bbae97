"""From cells to a trained model.

`fit` is what users call. Under it `loop` goes through the epochs and `step` is one step, a pure function
of one batch; `run` is the run's directory.
"""
