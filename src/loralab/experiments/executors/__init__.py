"""Executors by name: one file each; where the runs of a sweep or a study are trained.

``@register("executor", name, Params)`` holds a function (params, jobs, runs_dir,
logs_dir) that trains job after job until there are no more, and says how each ended.
"""
