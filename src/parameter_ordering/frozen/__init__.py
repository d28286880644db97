"""What a freeze is made of: the masks of an optimizer, and the frozen part of each parameter."""
