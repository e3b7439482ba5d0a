"""The cloud's engines against each other: speed, and what a data type changes of the choices."""
