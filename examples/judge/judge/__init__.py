"""A small judge service: accepts programs over HTTP, runs them in a sandbox, and survives a kill at any instant."""
