"""Files of the host: session folders, inbound writer, outbound reader and journal recovery, central registry."""
