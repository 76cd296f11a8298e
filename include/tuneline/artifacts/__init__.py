"""The files that steps leave for each other, each named once.

There is a module for each phase: a constant names a file, the step that writes it and the
type that reads and writes it. A step imports the names of the files that it reads. `people`
has the files that people's answers are kept in.
"""
