"""What a run costs, counted or foreseen: MACs, device memory, the plan of a sweep."""
