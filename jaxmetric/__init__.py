"""Metric learning for single-cell RNA-seq in JAX.

The public names are listed in `__init__.pyi`. Each is loaded when it is first used, so that the shell
answers at once and no program waits for what it does not use.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
