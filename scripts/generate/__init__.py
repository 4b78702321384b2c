"""What is generated from the program's own tables: manual pages and parts of the documentation."""
