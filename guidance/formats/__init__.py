"""Published formats of rows, turned into the columns that guidance/rows.py reads."""
