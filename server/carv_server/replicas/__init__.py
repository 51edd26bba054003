"""Replicas: one process holding one teacher on one device, behind one small protocol."""
