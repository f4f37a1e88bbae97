"""What a trained model can do, and its directory on disk.

`metric_learning` has the class `MetricLearning`; `forward` is how its networks go over cells or a file.
"""
