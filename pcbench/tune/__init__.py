"""`python -m pcbench.tune`: the setting with which a method reaches a speedup, a PSNR or a number of computed steps."""
