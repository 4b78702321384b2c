"""A live namespace compared with the plan: check, the diff of `plan`, show, doctor. Changes nothing."""
