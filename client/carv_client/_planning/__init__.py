"""The parts of ``carv_client.planner``."""

__all__: list[str] = []
