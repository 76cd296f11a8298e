"""Production requests as data: curated day by day, reviewed by people, handed to training."""
