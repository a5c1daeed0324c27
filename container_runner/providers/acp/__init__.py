"""The provider `acp`: drives any agent that speaks the Agent Client Protocol, version 1."""
