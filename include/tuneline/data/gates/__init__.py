"""Great Expectations gates over the audit tables of the data steps."""
