"""Doors into other libraries. Each is imported by itself: `import attncc` imports none of them."""
