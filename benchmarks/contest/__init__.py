"""How systems are measured in turn, each in a process of its own, and reported."""
