"""Small builders: each turns one section of the configuration into one object."""
