"""From cells to batches of packed rows, in host or device memory.

`batches` is what a batch is and how it is packed, `sampling` which cells it holds, `expression` what
the device makes of it.
"""
