"""The resources of this machine and their use by processes: cores, memory, threads, environment."""
