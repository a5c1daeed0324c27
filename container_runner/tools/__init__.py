"""The MCP server that gives an agent the bus's tools. A separate process beside the agent; standard library only."""
