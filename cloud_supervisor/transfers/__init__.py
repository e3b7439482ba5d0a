"""Transfers of the device's model to the devices that have none."""
