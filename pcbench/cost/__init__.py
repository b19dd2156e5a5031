"""What a run costs, counted or estimated: MACs (multiply-accumulates) and device memory."""
