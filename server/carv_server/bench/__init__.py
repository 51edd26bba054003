"""``carv bench``: measures what the estimators gain, on the embedded teacher.

``cells`` holds running variances with standard errors; ``laboratory`` evaluates the server's own
plans; ``states`` draws states of x; ``direct`` measures by independent replicates; ``kernels`` by
quadrature over a bank of draws; the ``*_section`` modules make tables and figures of them.
"""
