"""The cloud service: one large model that supervises many devices at once."""
