"""The board as a table: columns, checks, and how settings and profiles become one."""
