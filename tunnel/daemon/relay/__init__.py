"""Raw streams between an internal client and a box, moved without being understood."""
