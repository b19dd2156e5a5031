"""The paper's published numbers: checked against each other, and set beside ours."""
