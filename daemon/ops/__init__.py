"""The operator's tools that work on files: reports, and what builds the agent image."""
