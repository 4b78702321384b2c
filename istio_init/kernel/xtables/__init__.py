"""The legacy tables: the structs of x_tables, libiptc, and whole-table replacement."""
