"""What this machine has and how processes share it: cores, memory, threads, environment."""
