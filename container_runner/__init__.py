"""The container side of clawbus: claims inbound rows, runs turns, commits answers. Imports schema, never daemon."""
