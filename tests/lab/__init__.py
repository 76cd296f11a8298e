"""What tests of several folders work with: runs, small models, servers and faults."""
