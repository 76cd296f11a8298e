"""The question to people about licences, and the files of a release that licences ask for."""
