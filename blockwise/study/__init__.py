"""A fair comparison of ways to train: its rules, its plan, the runs as processes, its report."""
