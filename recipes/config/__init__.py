"""A recipe file becomes a Recipe, or one message with all that is wrong."""
