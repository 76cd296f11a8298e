"""The model that general ability is measured against: the base of the first release."""
