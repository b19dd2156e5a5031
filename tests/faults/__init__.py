"""Faults, injected into real sweeps: `python -m tests.faults [--kills 100]` prints a table of what they cost.

Each is done to a small sweep on a bundled model, the same line is issued again, and what is there then is compared with
an undisturbed run. The suite runs a few of each (tests/test_faults.py).
"""
