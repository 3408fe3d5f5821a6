"""`python -m plinius`."""

from plinius.cli.main import main

main()
