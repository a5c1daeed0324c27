"""The host side of clawbus: the daemon and the operator's command line. Imports schema, never container_runner."""
