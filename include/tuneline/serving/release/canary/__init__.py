"""Compare a candidate with the release on live requests, and decide."""
