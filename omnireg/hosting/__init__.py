"""What the plugin host is made of: the guard, finding and loading, and what plugins offer."""
