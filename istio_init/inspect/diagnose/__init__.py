"""From facts to causes, in the order in which a person would look. Changes nothing."""
