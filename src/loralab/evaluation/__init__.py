"""Predictions → metrics → intervals."""
