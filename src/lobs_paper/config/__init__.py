"""The configuration: its schema, how it is composed, what each stage reads."""
