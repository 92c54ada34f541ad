"""Tables, figures and pages; every number comes from a run."""
