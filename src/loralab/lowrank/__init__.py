"""An adapter's update as an object: ΔW = s·B·A, its algebra, its files."""
