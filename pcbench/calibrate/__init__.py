"""`python -m pcbench.calibrate`: measure what a method must know about a backbone."""
