"""Objectives: from items of one kind of rows to what a loss of one part takes."""
