"""Where rows come from; how a task turns rows into model inputs; batching."""
