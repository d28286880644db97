"""The command ``parameter-ordering``: the book's chapters, their numbers, single experiments."""
