"""What steps leave for each other, named once.

A module a phase: each constant there names a file, the step that writes it and the type that
reads and writes it. A step that wants a file of another imports its name from here.
"""
