"""Merging adapters in factored form: no base model, no transformers, no PEFT."""
