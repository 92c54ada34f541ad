"""Metrics: one file each, one function from answers to sums over rows.

A metric is ``f(params, answers) -> Scores`` under::

    @register("metric", "exact-match", answers="text", better="higher")

Facts: `answers` is the form it can judge (``class``, ``tags``, ``text``, or a tuple of
them); `better` is ``higher`` or ``lower``; `needs` names a field of `Answers` beyond
references and predictions (``samples``, ``probabilities``, ``ranked``).
"""
