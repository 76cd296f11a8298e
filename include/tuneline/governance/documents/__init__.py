"""Documents of a release for people and other tools, written from its manifest and evidence."""
