"""Metrics: one file each; a function of confusion matrices [..., C, C].

``confusion[..., t, p]`` counts the examples of class t that were predicted as p. The
leading dimensions are bootstrap draws, so a metric is computed on all of them at once.
"""
