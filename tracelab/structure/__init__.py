"""Where traces break, and why."""
