"""`python -m odist ...` is the command `odist ...`, for engines that start modules."""

from odist.cli.main import main

main()
