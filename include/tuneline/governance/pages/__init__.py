"""What people see of runs and releases, as HTML."""
