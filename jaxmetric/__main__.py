"""`python -m jaxmetric`: the same as `jaxmetric`."""

from jaxmetric.cli.main import main

main()
