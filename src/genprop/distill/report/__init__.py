"""A distillation's run for its readers: what it noted, its figures and pages, and runs compared."""
