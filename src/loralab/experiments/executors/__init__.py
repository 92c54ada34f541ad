"""Executors by name: one file each; where the runs of a sweep or a study are trained.

``@register("executor", name, Params)`` holds a function (params, jobs, runs_dir,
logs_dir) that takes job after job until there are no more, and says how each ended. The
fact ``later=True`` is of one that hands them on and does not wait: its jobs end as
``pending``, and the same call later hears of them.
"""
