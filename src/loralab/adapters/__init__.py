"""PEFT methods: attached to a base, counted, saved and loaded without loss."""
