"""What repeated runs can and cannot say.

seeds        intervals when k training seeds were measured on the same test examples
reference    the law of (estimate - truth) / standard error behind those intervals
coverage     the simulation that decides which interval is offered for how many seeds
decisions    permutation test, Holm, equivalence (TOST), and the verdict of a comparison
noise        the A/A noise floor, the detectable difference, the seeds that one needs
tasks        interquartile mean and probability of improvement over several tasks
merges       two merge methods, paired over orders, tasks and rows
trials       the expected best of 1..N trials of a search
"""
