"""The MCP server that gives an agent hands on its bus: a process of its own beside the agent, standard library only."""
