"""What people decide: waivers, approvals, votes, and the sheets that they fill in."""
