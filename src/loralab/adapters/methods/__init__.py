"""PEFT methods: one file each; a function from params and targets to PEFT's config."""
