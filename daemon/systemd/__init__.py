"""The daemon as a systemd service: notifications, the watchdog, and which unit this is."""
