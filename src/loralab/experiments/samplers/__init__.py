"""Samplers by name: one file each; which points of a space are tried.

``@register("sampler", name, Params)`` holds a function (params, space) to a `Sampler`,
which is asked for points one at a time and told what they came to::

    ask()                       the next point, or None: there are no more
    replay(point, value)        a trial that ended before this process began
    tell(point, value)          a trial has ended; None: it failed
    judge(point, step, value)   a validation in its midst; True: it may stop (pruned)

A sampler that lists its points needs `ask` only (see `_listed`).
"""
