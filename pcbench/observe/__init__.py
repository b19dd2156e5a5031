"""What is to be known of the uncached process: the measures behind the paper's figures 3-6 and its appendix A.2."""
