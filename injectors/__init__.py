"""Who does the harm: performs fault plans on a running target."""
