"""A merge that is added to, task by task: a folder that is never half written."""
