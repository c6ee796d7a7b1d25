"""The statistics of campaigns: bounds of rates, slowdowns, and what other programs did meanwhile."""
