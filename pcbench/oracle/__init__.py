"""`python -m pcbench.oracle`: the best schedule that a search finds, the most any rule can reach."""
