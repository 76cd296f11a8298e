"""What cost_tracking and fallback do with a real gateway: billing, planted faults, confidence."""
