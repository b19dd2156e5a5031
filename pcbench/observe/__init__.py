"""Measures of the uncached denoising process: the data of the paper's figures 3-6 and its appendix A.2."""
