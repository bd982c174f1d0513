"""One module a revision. A revision that was released is never changed: its tables are written out in it."""
