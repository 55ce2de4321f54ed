"""The agents that ship with Tasktrail, and the protocol that they speak."""
