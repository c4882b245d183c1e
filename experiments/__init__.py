"""Grids of runs, their tables, and what the speed is compared with."""
