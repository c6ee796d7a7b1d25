"""How one trial is made: a host, a session of the target's commands in it, and what became of what was left."""
