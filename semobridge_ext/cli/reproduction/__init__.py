"""Published protocols, run from images to a table that stands beside the published one."""
