"""Records to tables. Reads what pcbench wrote through its store; never loads torch."""
