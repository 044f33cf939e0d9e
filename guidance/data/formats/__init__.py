"""Published formats of rows, turned into the columns that guidance/data/rows.py reads."""
