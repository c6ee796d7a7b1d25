"""The statistics of campaigns: bounds of rates, slowdowns, and the load of other programs."""
