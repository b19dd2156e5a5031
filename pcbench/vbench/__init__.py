"""VBench (Vchitect/VBench 0.1.5) in an interpreter of its own, because it pins packages that diffusers refuses.

`python -m pcbench.vbench setup` builds that interpreter, `status` says what each dimension still lacks, and
`score.vbench=[…]` on the main command line scores the videos of a run. See docs/vbench.md.
"""
