"""`python -m jaxmetric`: the same as `jaxmetric`."""

from jaxmetric.cli import main

main()
