"""The device's engine and the cloud's supervisor on a virtual clock, above traces of the real pair."""
