"""Health probes of engines: the command and a pod's probe block."""
