"""Merged updates out: plain PEFT folders of any rank, or added into base weights."""
