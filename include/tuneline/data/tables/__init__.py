"""The tables that data steps hand to each other."""
